"""Spans are recorded at once, delivered in the background, and never cost the caller anything."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from opentelemetry.trace import SpanKind
from tests.otlp_receiver import otlp_receiver

from arborist.common.config import ConfigError, TelemetryConfig
from arborist.common.otel_config import load_otel_settings
from arborist.common.span_record import SpanRecord
from arborist.common.telemetry import (
    SpanPipeline,
    SpanRecorder,
    WorkerSpanSink,
    build_span_recorder,
)
from arborist.common.traceparent import format_traceparent, new_span_id, new_trace_id


class FakeExporter:
    """Keeps what it gets; blocks while told to, delivers unless told not to."""

    def __init__(self) -> None:
        self.spans: list[SpanRecord] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.working = True

    def export(self, spans: Sequence[SpanRecord]) -> bool:
        """Takes a batch."""
        self.may_go.wait(10)
        self.spans.extend(spans)
        return self.working

    def shutdown(self) -> None:
        """Ends a blocked export."""
        self.may_go.set()


def record(recorder: SpanRecorder, name: str = "round", **changes) -> None:
    """Records a span of no interest."""
    values = {
        "trace_id": 1,
        "span_id": new_span_id(),
        "parent_span_id": 2,
        "start_ns": 10,
        "end_ns": 20,
        "attributes": {},
    }
    recorder.record(name, **{**values, **changes})


@pytest.fixture
def exporter() -> FakeExporter:
    """An exporter in memory."""
    return FakeExporter()


@pytest.fixture
def recorder(exporter: FakeExporter):
    """A recorder with room for four spans."""
    one = SpanRecorder([SpanPipeline(exporter, 4, "memory")])
    yield one
    one.shutdown()


def test_nothing_is_recorded_without_a_destination() -> None:
    """A recorder without pipelines takes spans and does nothing."""
    recorder = SpanRecorder()
    record(recorder)

    assert not recorder.enabled
    assert recorder.flush()


def test_spans_arrive_in_order(recorder: SpanRecorder, exporter: FakeExporter) -> None:
    """What is recorded is exported in the order of recording."""
    for name in ("a", "b", "c"):
        record(recorder, name)

    assert recorder.flush()
    assert [one.name for one in exporter.spans] == ["a", "b", "c"]


def test_a_full_queue_drops_and_counts(recorder: SpanRecorder, exporter: FakeExporter) -> None:
    """While the exporter hangs the caller goes on and what does not fit is counted."""
    exporter.may_go.clear()
    for _ in range(100):
        record(recorder)
    lost = recorder.num_dropped
    exporter.may_go.set()

    assert recorder.flush()
    assert lost >= 100 - 2 * 4
    assert len(exporter.spans) == 100 - lost


def test_an_exporter_that_fails_is_counted_and_logged_once(
    recorder: SpanRecorder, exporter: FakeExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """A destination that is away is one warning, not one per batch."""
    exporter.working = False
    for _ in range(3):
        record(recorder)
        assert recorder.flush()

    assert recorder.num_dropped == 3
    assert len([one for one in caplog.records if "cannot be delivered" in one.message]) == 1


def test_spans_can_be_built_later(recorder: SpanRecorder, exporter: FakeExporter) -> None:
    """A builder runs in the background thread, and one that fails does not end tracing."""
    threads = []

    def build() -> list[SpanRecord]:
        threads.append(threading.current_thread())
        return [SpanRecord("late", 1, 2, 0, 10, 20, {})]

    def fail() -> list[SpanRecord]:
        raise ValueError

    recorder.record_later(fail)
    recorder.record_later(build)

    assert recorder.flush()
    assert [one.name for one in exporter.spans] == ["late"]
    assert threads[0] is not threading.current_thread()


def test_a_hanging_exporter_does_not_hang_shutdown(
    recorder: SpanRecorder, exporter: FakeExporter
) -> None:
    """Shutdown tells the exporter to give up and ends its thread."""
    exporter.may_go.clear()
    record(recorder)
    recorder.shutdown(timeout_s=0.05)
    record(recorder)

    assert "spans-memory" not in [one.name for one in threading.enumerate()]
    assert recorder.num_dropped == 1


def test_a_worker_span_hangs_below_the_command(
    recorder: SpanRecorder, exporter: FakeExporter
) -> None:
    """The parent is what the traceparent says."""
    trace_id, span_id = new_trace_id(), new_span_id()
    sink = WorkerSpanSink(recorder)
    sink.record("target.forward", format_traceparent(trace_id, span_id), 10, 20, {"rows": 3})
    sink.record("target.forward", "", 10, 20, {})
    sink.record("target.forward", "00-nonsense", 10, 20, {})

    assert recorder.flush()
    (span,) = exporter.spans
    assert (span.trace_id, span.parent_span_id) == (trace_id, span_id)
    assert span.kind is SpanKind.SERVER
    assert span.attributes == {"rows": 3}


def test_the_file_gets_one_line_per_span(tmp_path: Path) -> None:
    """Two processes may append to one file; every line is one span."""
    path = tmp_path / "trace.jsonl"
    config = TelemetryConfig(trace_file=path)
    for role in ("controller", "draft"):
        recorder = build_span_recorder(config, role)
        record(recorder, error="DEADLINE_EXCEEDED", attributes={"tokens": [1, 2]})
        recorder.shutdown()

    lines = [json.loads(one) for one in path.read_text().splitlines()]
    assert [one["service"] for one in lines] == ["arborist-controller", "arborist-draft"]
    assert lines[0]["parent_span_id"] == "0000000000000002"
    assert lines[0]["attributes"] == {"tokens": [1, 2]}
    assert lines[0]["error"] == "DEADLINE_EXCEEDED"


def test_a_trace_file_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    """The error names the file."""
    with pytest.raises(ConfigError, match=r"trace file .*missing.*No such file"):
        build_span_recorder(TelemetryConfig(trace_file=tmp_path / "missing" / "x"), "controller")


def test_spans_reach_an_otlp_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids, parent, times, attributes, status and resource arrive as they were recorded."""
    with otlp_receiver() as receiver:
        for name, value in receiver.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        recorder = build_span_recorder(TelemetryConfig(), "target")
        record(recorder, "verify", trace_id=0xAB, span_id=0xCD, attributes={"accepted": 3})
        record(recorder, "lost", error="UNAVAILABLE")
        assert recorder.flush()
        recorder.shutdown()

    verify, lost = receiver.spans
    assert (verify.trace_id, verify.span_id) == (f"{0xAB:032x}", f"{0xCD:016x}")
    assert verify.parent_span_id == f"{2:016x}"
    assert (verify.start_ns, verify.end_ns) == (10, 20)
    assert verify.attributes == {"accepted": 3}
    assert verify.service == "arborist-target"
    assert not verify.failed
    assert lost.failed
    assert lost.attributes == {"error.type": "UNAVAILABLE"}


def test_a_dead_collector_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recording goes on, nothing is raised, and what was lost is counted."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    recorder = build_span_recorder(TelemetryConfig(), "controller")
    for _ in range(10):
        record(recorder)

    assert not recorder.flush(timeout_s=0.05)
    recorder.shutdown(timeout_s=0.05)
    assert recorder.num_dropped == 10


@pytest.mark.parametrize(
    ("variables", "export"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:1"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:1"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:1"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:1"}, False),
    ],
)
def test_the_standard_variables_decide(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], export: bool
) -> None:
    """Spans are exported when a collector is named and nothing forbids it."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert load_otel_settings().export_traces is export


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")],
)
def test_what_is_not_built_in_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """An exporter or protocol we do not have is refused by name instead of losing spans."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://x:1")
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError, match=f"{name} = {value}"):
        load_otel_settings()
