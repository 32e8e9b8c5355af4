"""Times the parts of a round and gives each remote part its span."""

from __future__ import annotations

from dataclasses import replace
from typing import Self, TypeVar

from arborist.core.errors import ArboristError
from arborist.core.pool import Pool
from arborist.core.tree import Level
from arborist.orchestrator.clock import Clock
from arborist.orchestrator.links import Reply
from arborist.orchestrator.request_trace import RequestTrace, SpanName
from arborist.orchestrator.round import Phase, Round

ValueT = TypeVar("ValueT")


class _TimedPart:
    """Work under way, from `with` on; a failure is noted and passed on.

    A class, not a generator: there are several in every round.
    """

    def __init__(self, timer: PhaseTimer, span: SpanName, name: str, rows: int) -> None:
        self._timer = timer
        self._span = span
        self._name = name
        self._rows = rows
        self._start_ns = 0

    def __enter__(self) -> Self:
        """Starts the time."""
        self._start_ns = self._timer.now_ns()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Adds what it was to the round."""
        failed = ""
        if error is not None:
            failed = error.reason if isinstance(error, ArboristError) else "CANCELLED"
        self._timer.round.phases += self._phases(self._timer.now_ns(), failed)

    def _phases(self, end_ns: int, failed: str) -> list[Phase]:
        raise NotImplementedError


class _LocalWork(_TimedPart):
    """Work of the controller itself; what fails is no part of the round."""

    def _phases(self, end_ns: int, failed: str) -> list[Phase]:
        if failed:
            return []
        return [Phase(self._name, self._span.span_id, self._start_ns, end_ns, rows=self._rows)]


class RemoteCall(_TimedPart):
    """One command under way."""

    _queue_ms = 0.0
    _compute_ms = 0.0

    @property
    def traceparent(self) -> str:
        """Returns what the worker needs to hang its span below ours."""
        return self._span.traceparent

    def done(self, reply: Reply[ValueT]) -> ValueT:
        """Notes where the worker's time went and returns the answer."""
        self._queue_ms = reply.queue_ms
        self._compute_ms = reply.compute_ms
        return reply.value

    def _phases(self, end_ns: int, failed: str) -> list[Phase]:
        return [
            Phase(
                self._name,
                self._span.span_id,
                self._start_ns,
                end_ns,
                queue_ms=self._queue_ms,
                compute_ms=self._compute_ms,
                remote=True,
                rows=self._rows,
                failed=failed,
            )
        ]


class TreeCall(RemoteCall):
    """An Extend and the ExpandTree behind it, under way."""

    def __init__(
        self, timer: PhaseTimer, span: SpanName, level_spans: list[SpanName], rows: int
    ) -> None:
        super().__init__(timer, span, "draft.extend", rows)
        self._pool_queue_ms = 0.0
        self._pool: Pool | None = None
        self.level_spans = level_spans
        """Spans of levels 2, 3, ..."""

    def done_both(self, extended: Reply[Level], grown: Reply[Pool]) -> tuple[Level, Pool]:
        """Notes where the worker's time went and returns both answers."""
        self._pool_queue_ms = grown.queue_ms
        self._pool = grown.value
        return self.done(extended), grown.value

    def _phases(self, end_ns: int, failed: str) -> list[Phase]:
        """Returns one phase per level, without gaps.

        The levels of the pool lie end to end by the worker's times, the last one ending with the
        answer; what is left before them is the Extend and both ways.
        """
        levels: list[Phase] = []
        grown = [(0.0, 0)] * len(self.level_spans)
        if self._pool is not None:
            grown = [(one.compute_ms, len(one.frontier)) for one in self._pool.levels]
        for span, (compute_ms, width) in reversed(list(zip(self.level_spans, grown, strict=True))):
            begin_ns = max(end_ns - int(compute_ms * 1e6), self._start_ns)
            levels.append(
                Phase(
                    "draft.expand",
                    span.span_id,
                    begin_ns,
                    end_ns,
                    compute_ms=compute_ms,
                    remote=True,
                    rows=width,
                    failed=failed,
                    same_call=True,
                )
            )
            end_ns = begin_ns
        levels[-1] = replace(levels[-1], queue_ms=self._pool_queue_ms, same_call=False)
        return [*super()._phases(end_ns, failed), *reversed(levels)]


class PhaseTimer:
    """Adds phases to a round."""

    def __init__(self, round_: Round, clock: Clock, trace: RequestTrace) -> None:
        self.round = round_
        self._trace = trace
        self.now_ns = clock.now_ns
        """Returns the present time."""

    def local(self, name: str, rows: int = 0) -> _LocalWork:
        """Times work of the controller itself."""
        return _LocalWork(self, self._trace.name_span(), name, rows)

    def remote(self, name: str, rows: int) -> RemoteCall:
        """Times one command to a worker."""
        return RemoteCall(self, self._trace.name_span(), name, rows)

    def remote_tree(self, rows: int, depth: int) -> TreeCall:
        """Times an Extend and the ExpandTree behind it.

        Args:
            rows: Pairs of the Extend.
            depth: Levels of the tree, at least 2.
        """
        span = self._trace.name_span()
        return TreeCall(self, span, [self._trace.name_span() for _ in range(depth - 1)], rows)
