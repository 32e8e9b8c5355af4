"""The trace of one request: `generate` → `prefill` and `round` → their phases (DESIGN §6).

A span's id is handed out when its work begins, so that workers can hang theirs below it; the span
itself is built after its round was delivered, in the recorder's thread. No text in any of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

from opentelemetry.trace import SpanKind

from arborist.common.span_record import AttributeValue, SpanRecord
from arborist.common.telemetry import SpanRecorder
from arborist.common.traceparent import new_span_id, new_trace_id, parse_traceparent
from arborist.orchestrator.clock import Clock
from arborist.orchestrator.request_trace import UNTRACED, SpanName
from arborist.orchestrator.round import Phase, Round

Detail: TypeAlias = Literal["level", "round"]


class SpanTrace:
    """Traces one request; implements `RequestTrace`.

    Every id handed out becomes a span, so that what workers recorded is always connected: rounds
    that the client did not get are `round.discarded`, what was cut short in them is `abandoned`.
    """

    def __init__(
        self, recorder: SpanRecorder, clock: Clock, detail: Detail, traceparent: str = ""
    ) -> None:
        """Begins the trace.

        Args:
            recorder: Takes the spans.
            clock: Time.
            detail: "level" = a span per phase; "round" = phases as attributes of their round.
            traceparent: The client's span; empty = this request is the root.
        """
        caller = parse_traceparent(traceparent)
        self._recorder = recorder
        self._clock = clock
        self._detail = detail
        self._trace_id = caller.trace_id if caller else new_trace_id()
        self._caller_span_id = caller.span_id if caller else 0
        self._span_id = new_span_id()
        self._start_ns = clock.now_ns()
        self._prefix = f"00-{self._trace_id:032x}-"
        self._round: SpanName | None = None
        # Handed out and not recorded yet: span id -> start.
        self._open: dict[int, int] = {}
        self._committed: deque[Round] = deque()

    @property
    def trace_id(self) -> str:
        """Returns the trace's id, 32 hex digits."""
        return f"{self._trace_id:032x}"

    def name_span(self) -> SpanName:
        """Returns a fresh id: the first one after a recorded round is the next round's."""
        if self._round is not None and self._detail == "round":
            return SpanName(0, self._round.traceparent)
        span_id = new_span_id()
        name = SpanName(span_id, f"{self._prefix}{span_id:016x}-01")
        self._open[span_id] = self._clock.now_ns()
        if self._round is None:
            self._round = name
        return name

    def record_round(self, round_: Round) -> None:
        """Takes a committed round; its spans are built once it is delivered."""
        self._round = None
        self._committed.append(round_)

    def deliver(self, round_: Round, delivered_count: int) -> None:
        """Records a round that reached the client.

        Args:
            round_: The oldest one not delivered yet.
            delivered_count: Tokens of it that count.
        """
        if self._committed and self._committed[0] is round_:
            self._committed.popleft()
        self._record(round_, "prefill" if round_.round_index < 0 else "round", delivered_count)

    def discard(self) -> None:
        """Records what was decoded or begun and will not be delivered."""
        while self._committed:
            self._record(self._committed.popleft(), "round.discarded", 0)
        end_ns = self._clock.now_ns()
        cut_short = self._round.span_id if self._round is not None else 0
        for span_id, start_ns in self._open.items():
            is_round = span_id == cut_short
            self._recorder.record(
                "round.discarded" if is_round else "abandoned",
                trace_id=self._trace_id,
                span_id=span_id,
                parent_span_id=self._span_id if is_round else cut_short,
                start_ns=start_ns,
                end_ns=end_ns,
                attributes={},
            )
        self._open.clear()
        self._round = None

    def finish(self, attributes: Mapping[str, AttributeValue], error: str = "") -> None:
        """Ends the trace.

        Args:
            attributes: Of the `generate` span.
            error: Reason of the failure; empty = none.
        """
        self.discard()
        self._recorder.record(
            "generate",
            trace_id=self._trace_id,
            span_id=self._span_id,
            parent_span_id=self._caller_span_id,
            start_ns=self._start_ns,
            end_ns=self._clock.now_ns(),
            attributes=attributes,
            kind=SpanKind.SERVER,
            error=error or None,
            remote_parent=self._caller_span_id != 0,
        )

    def _record(self, round_: Round, name: str, delivered_count: int) -> None:
        self._open.pop(round_.span_id, None)
        for phase in round_.phases:
            self._open.pop(phase.span_id, None)
        trace_id, parent, detail = self._trace_id, self._span_id, self._detail
        self._recorder.record_later(
            lambda: round_spans(round_, name, delivered_count, trace_id, parent, detail)
        )


def round_spans(
    round_: Round,
    name: str,
    delivered_count: int,
    trace_id: int,
    parent_span_id: int,
    detail: Detail,
) -> Iterable[SpanRecord]:
    """Builds a round's span and, at detail "level", its phases' spans.

    Args:
        round_: Finished round.
        name: "prefill", "round" or "round.discarded".
        delivered_count: Tokens of it that reached the client.
        trace_id: Trace it belongs to.
        parent_span_id: Span of the request.
        detail: Whether phases are spans or attributes.
    Yields:
        The round's span first.
    """
    attributes = _round_attributes(round_, delivered_count)
    if detail == "round":
        attributes.update(_phase_lists(round_.phases))
    yield SpanRecord(
        name,
        trace_id,
        round_.span_id,
        parent_span_id,
        round_.start_ns,
        round_.end_ns,
        attributes,
    )
    if detail == "round":
        return
    level = 0
    for phase in round_.phases:
        if phase.name in ("draft.extend", "draft.expand"):
            level += 1
        yield SpanRecord(
            phase.name,
            trace_id,
            phase.span_id,
            round_.span_id,
            phase.start_ns,
            phase.end_ns,
            _phase_attributes(round_, phase, level),
            SpanKind.CLIENT if phase.remote else SpanKind.INTERNAL,
            phase.failed or None,
        )


def _round_attributes(round_: Round, delivered_count: int) -> dict[str, AttributeValue]:
    times = round_.times
    attributes: dict[str, AttributeValue] = {
        "round_index": round_.round_index,
        "prefix_length": round_.prefix_length,
        "committed_count": len(round_.tokens),
        "delivered_count": delivered_count,
        "draft_compute_ms": times.draft_compute_ms,
        "verify_compute_ms": times.verify_compute_ms,
        "transport_ms": times.transport_ms,
        "controller_ms": times.controller_ms,
    }
    if round_.round_index >= 0:
        attributes.update(
            num_draft_tokens=round_.num_draft_tokens,
            depth=round_.depth,
            accepted_count=round_.accepted_count,
            speculated=round_.speculated,
            min_margin=round_.min_margin,
        )
    return attributes


def _phase_attributes(round_: Round, phase: Phase, level: int) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {"round_index": round_.round_index}
    if phase.rows:
        attributes["rows"] = phase.rows
    if phase.remote:
        attributes["queue_ms"] = phase.queue_ms
        attributes["compute_ms"] = phase.compute_ms
    if phase.name in ("draft.extend", "draft.expand"):
        attributes["level"] = level
    if phase.name == "target.verify":
        attributes["num_draft_tokens"] = round_.num_draft_tokens
        attributes["accepted_count"] = round_.accepted_count
    if phase.name == "commit":
        attributes["tokens_count"] = len(round_.tokens)
    return attributes


def _phase_lists(phases: Iterable[Phase]) -> dict[str, AttributeValue]:
    rows = list(phases)
    return {
        "phase_names": [one.name for one in rows],
        "phase_rows": [one.rows for one in rows],
        "phase_ms": [one.wall_ms for one in rows],
        "phase_queue_ms": [one.queue_ms for one in rows],
        "phase_compute_ms": [one.compute_ms for one in rows],
    }


class NoSpans:
    """A request that is not traced; same face as `SpanTrace`."""

    trace_id = ""

    def name_span(self) -> SpanName:
        """Returns UNTRACED."""
        return UNTRACED

    def record_round(self, round_: Round) -> None:
        """Does nothing."""

    def deliver(self, round_: Round, delivered_count: int) -> None:
        """Does nothing."""

    def discard(self) -> None:
        """Does nothing."""

    def finish(self, attributes: Mapping[str, AttributeValue], error: str = "") -> None:
        """Does nothing."""


GenerationTrace: TypeAlias = SpanTrace | NoSpans


def begin_trace(
    recorder: SpanRecorder, clock: Clock, detail: Detail, traceparent: str
) -> GenerationTrace:
    """Begins the trace of a request, unless nobody wants it.

    Args:
        recorder: Takes the spans.
        clock: Time.
        detail: How fine.
        traceparent: What the client sent; a caller that does not record its trace is not traced.
    """
    caller = parse_traceparent(traceparent)
    if not recorder.enabled or (caller is not None and not caller.sampled):
        return NoSpans()
    return SpanTrace(recorder, clock, detail, traceparent)
