"""The standard ``OTEL_…`` variables, as far as we decide on them; the exporter reads the rest."""

from __future__ import annotations

import os
from dataclasses import dataclass

from arborist.common.config import ConfigError


@dataclass(frozen=True, slots=True)
class OtelSettings:
    """Where spans go, by the OpenTelemetry environment specification.

    Attributes:
        export_traces: Whether spans are sent to an OTLP/gRPC collector.
        service_name: OTEL_SERVICE_NAME, or None.
        endpoint: Collector as configured, for messages; empty = the exporter's default.
    """

    export_traces: bool
    service_name: str | None = None
    endpoint: str = ""


def load_otel_settings() -> OtelSettings:
    """Reads OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER, OTEL_SERVICE_NAME and the endpoints.

    Spans are exported when an exporter or an endpoint is named: unlike the SDK we do not assume a
    collector at localhost, so that nothing is tried on a machine without one.

    Raises:
        ConfigError: An exporter or protocol is named that is not built in.
    """
    service_name = os.environ.get("OTEL_SERVICE_NAME") or None
    endpoint = (
        os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or ""
    )
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter not in ("", "none", "otlp"):
        raise ConfigError(f"OTEL_TRACES_EXPORTER = {exporter}: must be otlp or none")
    export = not disabled and (exporter == "otlp" or (exporter == "" and endpoint != ""))
    protocol = (
        os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "grpc"
    )
    if export and protocol != "grpc":
        raise ConfigError(f"OTEL_EXPORTER_OTLP_PROTOCOL = {protocol}: must be grpc")
    return OtelSettings(export, service_name, endpoint)
