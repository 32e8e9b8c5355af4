"""Traces, built off the critical path: recording a span is one append to a bounded queue.

A background thread per exporter turns records into what the exporter wants. Ids are chosen by the
caller, so that a span's id can travel in a ``traceparent`` long before the span ends. A collector
that is away costs nothing but counted drops.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.trace import SpanKind

from arborist.common.config import TelemetryConfig
from arborist.common.otel_config import OtelSettings, load_otel_settings
from arborist.common.span_exporters import JsonLinesExporter, SpanExporter
from arborist.common.span_record import AttributeValue, SpanRecord
from arborist.common.traceparent import new_span_id, parse_traceparent

BuildSpans: TypeAlias = Callable[[], Iterable[SpanRecord]]
"""Makes the spans of something that is over, later and in another thread."""

# Small, because encoding a batch holds the interpreter lock that the event loop wants.
_BATCH_SPANS = 64
_POLL_S = 0.2
# What an exporter gets to end after it was told to.
_JOIN_S = 0.5

_log = logging.getLogger(__name__)


class SpanPipeline:
    """A bounded queue, a thread and an exporter."""

    def __init__(self, exporter: SpanExporter, max_queue_spans: int, name: str) -> None:
        """Starts the thread.

        Args:
            exporter: Takes the batches.
            max_queue_spans: Records that may wait; more are dropped and counted.
            name: Destination, for the log.
        """
        self._exporter = exporter
        self._max_queue_spans = max_queue_spans
        self._name = name
        self._queue: deque[SpanRecord | BuildSpans | threading.Event] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._failing = False
        self.num_dropped = 0
        self.num_failed = 0
        self._thread = threading.Thread(target=self._run, name=f"spans-{name}", daemon=True)
        self._thread.start()

    def offer(self, item: SpanRecord | BuildSpans) -> None:
        """Queues a record, or drops and counts it; never blocks."""
        if len(self._queue) >= self._max_queue_spans or self._stopping:
            self.num_dropped += 1
            return
        self._queue.append(item)

    def flush(self, deadline_s: float) -> bool:
        """Waits until what was queued so far is delivered or given up.

        Args:
            deadline_s: Moment of `time.monotonic` to stop waiting at.

        Returns:
            Whether the queue was emptied in time.
        """
        reached = threading.Event()
        self._queue.append(reached)
        self._wake.set()
        return reached.wait(max(0.0, deadline_s - time.monotonic()))

    def shutdown(self, deadline_s: float) -> None:
        """Flushes, then ends the thread whatever the exporter is doing."""
        self.flush(deadline_s)
        self._stopping = True
        self._wake.set()
        self._exporter.shutdown()
        self._thread.join(_JOIN_S)
        self.num_dropped += sum(isinstance(one, SpanRecord) for one in self._queue)

    def _run(self) -> None:
        while not self._stopping:
            if not self._queue:
                self._wake.wait(_POLL_S)
                self._wake.clear()
            spans, reached = self._next_batch()
            if spans:
                self._export(spans)
            if reached is not None:
                reached.set()

    def _next_batch(self) -> tuple[list[SpanRecord], threading.Event | None]:
        """Takes items until a batch is full or a flush is waiting for it."""
        spans: list[SpanRecord] = []
        while self._queue and len(spans) < _BATCH_SPANS:
            item = self._queue.popleft()
            if isinstance(item, threading.Event):
                return spans, item
            if isinstance(item, SpanRecord):
                spans.append(item)
                continue
            try:
                spans.extend(item())
            except Exception:  # noqa: BLE001 - a bug in one span must not end all tracing
                _log.exception("spans could not be built")
            time.sleep(0)  # Lets the event loop in.
        return spans, None

    def _export(self, spans: Sequence[SpanRecord]) -> None:
        delivered = self._exporter.export(spans)
        if not delivered:
            self.num_failed += len(spans)
        if self._failing == delivered and not self._stopping:
            self._failing = not delivered
            state = "are delivered again" if delivered else "cannot be delivered; serving goes on"
            _log.log(
                logging.INFO if delivered else logging.WARNING, "spans for %s %s", self._name, state
            )


class SpanRecorder:
    """Takes finished spans from any thread and returns at once."""

    def __init__(self, pipelines: Sequence[SpanPipeline] = ()) -> None:
        """Records into every pipeline; without one, `record` does nothing."""
        self._pipelines = tuple(pipelines)
        self.enabled = bool(self._pipelines)

    @property
    def num_dropped(self) -> int:
        """Returns spans lost because a queue was full or a destination away."""
        return sum(one.num_dropped + one.num_failed for one in self._pipelines)

    def record(
        self,
        name: str,
        *,
        trace_id: int,
        span_id: int,
        parent_span_id: int,
        start_ns: int,
        end_ns: int,
        attributes: Mapping[str, AttributeValue],
        kind: SpanKind = SpanKind.INTERNAL,
        error: str | None = None,
        remote_parent: bool = False,
    ) -> None:
        """Queues a finished span; never blocks or raises.

        Args:
            name: Such as ``round``.
            trace_id: 128 bits, not 0.
            span_id: 64 bits, not 0.
            parent_span_id: 64 bits; 0 = root of the trace.
            start_ns: Unix time, nanoseconds.
            end_ns: Unix time, nanoseconds.
            attributes: Values; owned by the recorder from now on.
            kind: Role of the span.
            error: Reason of a failure; None = none.
            remote_parent: Whether the parent lies in another process.
        """
        if self.enabled:
            record = SpanRecord(
                name,
                trace_id,
                span_id,
                parent_span_id,
                start_ns,
                end_ns,
                attributes,
                kind,
                error,
                remote_parent,
            )
            for pipeline in self._pipelines:
                pipeline.offer(record)

    def record_later(self, build: BuildSpans) -> None:
        """Queues spans that are still to be built, in the background thread.

        Args:
            build: Called once per pipeline; what it reads must not change any more.
        """
        for pipeline in self._pipelines:
            pipeline.offer(build)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Waits for delivery of what was recorded so far; blocks, so not on an event loop.

        Returns:
            Whether everything was handed over in time.
        """
        deadline_s = time.monotonic() + timeout_s
        return all(one.flush(deadline_s) for one in self._pipelines)

    def shutdown(self, timeout_s: float = 2.0) -> None:
        """Flushes and ends the threads; blocks, so not on an event loop.

        Args:
            timeout_s: Longest wait for delivery, in seconds; an exporter that hangs then gets half
                a second to end.
        """
        deadline_s = time.monotonic() + timeout_s
        for pipeline in self._pipelines:
            pipeline.shutdown(deadline_s)


class WorkerSpanSink:
    """Records a worker's spans as children of what the controller sent in ``traceparent``."""

    def __init__(self, recorder: SpanRecorder) -> None:
        self._recorder = recorder

    def record(
        self,
        name: str,
        traceparent: str,
        start_ns: int,
        end_ns: int,
        attributes: Mapping[str, AttributeValue],
    ) -> None:
        """Queues a finished span; without a valid traceparent nothing is recorded.

        Args:
            name: Such as ``target.forward``.
            traceparent: As the command carried it; empty = not traced.
            start_ns: Unix time, nanoseconds.
            end_ns: Unix time, nanoseconds.
            attributes: Values; owned by the recorder from now on.
        """
        if self._recorder.enabled:
            span = (name, traceparent, start_ns, end_ns, attributes)
            # Reading the traceparent costs more than everything else: not on the worker's time.
            self._recorder.record_later(partial(_child_span, *span))


def _child_span(
    name: str,
    traceparent: str,
    start_ns: int,
    end_ns: int,
    attributes: Mapping[str, AttributeValue],
) -> list[SpanRecord]:
    parent = parse_traceparent(traceparent)
    if parent is None:
        return []
    return [
        SpanRecord(
            name,
            parent.trace_id,
            new_span_id(),
            parent.span_id,
            start_ns,
            end_ns,
            attributes,
            SpanKind.SERVER,
            remote_parent=True,
        )
    ]


def build_span_recorder(
    config: TelemetryConfig, role: str, version: str = "", otel: OtelSettings | None = None
) -> SpanRecorder:
    """Starts what the configuration and the OTEL_… variables ask for.

    Args:
        config: Trace file, queue length, service name.
        role: ``controller``, ``draft`` or ``target``.
        version: Version of the software, for ``service.version``.
        otel: The OTEL_… variables; None = read them now.

    Returns:
        A recorder; not `enabled` when nothing was asked for.

    Raises:
        ConfigError: The trace file cannot be opened, or an exporter is named that is not built in.
    """
    otel = otel or load_otel_settings()
    if not otel.export_traces and config.trace_file is None:
        return SpanRecorder()
    name = config.service_name or otel.service_name or f"arborist-{role}"
    # Resource.create adds OTEL_RESOURCE_ATTRIBUTES.
    resource = Resource.create(
        {SERVICE_NAME: name, SERVICE_VERSION: version, "arborist.role": role}
    )
    pipelines = []
    if config.trace_file is not None:
        exporter = JsonLinesExporter(config.trace_file, resource)
        pipelines.append(SpanPipeline(exporter, config.max_queue_spans, str(config.trace_file)))
    if otel.export_traces:
        # Late: it brings a good deal with it, in the start of every process.
        from arborist.common.otlp_exporter import OtlpExporter

        destination = otel.endpoint or "the OTLP collector"
        pipelines.append(SpanPipeline(OtlpExporter(resource), config.max_queue_spans, destination))
    return SpanRecorder(pipelines)
