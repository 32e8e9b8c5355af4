"""Sends spans to an OTLP/gRPC collector; imported only when there is one, for what it brings."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from arborist.common.span_record import SpanRecord

SCOPE = InstrumentationScope("arborist")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class OtlpExporter:
    """Sends spans to the collector that the OTEL_EXPORTER_OTLP_… variables name."""

    def __init__(self, resource: Resource) -> None:
        # It logs every retry; a collector that is away is reported once, by the recorder.
        logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)
        self._resource = resource
        self._exporter = OTLPSpanExporter()

    def export(self, spans: Sequence[SpanRecord]) -> bool:
        """Sends a batch, with the SDK's retries inside OTEL_EXPORTER_OTLP_TIMEOUT."""
        readable = [readable_span(span, self._resource) for span in spans]
        return self._exporter.export(readable) is SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Closes the channel and ends the retries."""
        self._exporter.shutdown()


def readable_span(span: SpanRecord, resource: Resource) -> ReadableSpan:
    """Returns the SDK's form of a span, with the ids that were chosen when it began."""
    parent = None
    if span.parent_span_id:
        parent = SpanContext(span.trace_id, span.parent_span_id, span.remote_parent, _SAMPLED)
    attributes = dict(span.attributes)
    status = Status(StatusCode.UNSET)
    if span.error is not None:
        attributes["error.type"] = span.error
        status = Status(StatusCode.ERROR, span.error)
    return ReadableSpan(
        name=span.name,
        context=SpanContext(span.trace_id, span.span_id, is_remote=False, trace_flags=_SAMPLED),
        parent=parent,
        resource=resource,
        attributes=attributes,
        kind=span.kind,
        status=status,
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=SCOPE,
    )
