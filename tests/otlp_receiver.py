"""A real OTLP/gRPC trace receiver: what a collector would see, kept in memory."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class ReceivedSpan:
    """One span as it came over the wire, with its process's service name."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_span_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    failed: bool


class OtlpReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Collects every exported span; `address` is host:port."""

    def __init__(self) -> None:
        self.address = ""
        self.spans: list[ReceivedSpan] = []

    @property
    def environment(self) -> dict[str, str]:
        """Returns the variables that send a process's spans here."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{self.address}"}

    def Export(self, request, context):  # noqa: N802 - name of the RPC
        """Takes one batch."""
        for group in request.resource_spans:
            resource = {one.key: _value(one.value) for one in group.resource.attributes}
            for span in (span for scope in group.scope_spans for span in scope.spans):
                attributes = {one.key: _value(one.value) for one in span.attributes}
                self.spans.append(
                    ReceivedSpan(
                        span.name,
                        resource.get("service.name", ""),
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        attributes,
                        span.status.code == span.status.STATUS_CODE_ERROR,
                    )
                )
        return trace_service_pb2.ExportTraceServiceResponse()


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind) if kind else None


@contextmanager
def otlp_receiver() -> Iterator[OtlpReceiver]:
    """Runs a receiver on a free port of the loopback."""
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    receiver = OtlpReceiver()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    receiver.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(grace=None).wait()
