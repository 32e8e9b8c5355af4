"""Times the parts of a round and gives each remote part its span."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from arborist.core.errors import ArboristError
from arborist.core.pool import Pool
from arborist.core.tree import Level
from arborist.orchestrator.clock import Clock
from arborist.orchestrator.links import Reply
from arborist.orchestrator.request_trace import RequestTrace, SpanName
from arborist.orchestrator.round import Phase, Round

ValueT = TypeVar("ValueT")


class RemoteCall:
    """One command under way."""

    def __init__(self, span: SpanName) -> None:
        self._span = span
        self.queue_ms = 0.0
        self.compute_ms = 0.0

    @property
    def traceparent(self) -> str:
        """Returns what the worker needs to hang its span below ours."""
        return self._span.traceparent

    def done(self, reply: Reply[ValueT]) -> ValueT:
        """Notes where the worker's time went and returns the answer."""
        self.queue_ms = reply.queue_ms
        self.compute_ms = reply.compute_ms
        return reply.value


class TreeCall:
    """An Extend and the ExpandTree behind it, under way."""

    def __init__(self, span: SpanName, level_spans: list[SpanName]) -> None:
        self._span = span
        self._extend_ms = (0.0, 0.0)
        self._queue_ms = 0.0
        self._pool: Pool | None = None
        self.level_spans = level_spans
        """Spans of levels 2, 3, ..."""

    @property
    def traceparent(self) -> str:
        """Returns what the worker needs to hang its span of the Extend below ours."""
        return self._span.traceparent

    def done(self, extended: Reply[Level], grown: Reply[Pool]) -> tuple[Level, Pool]:
        """Notes where the worker's time went and returns the answers."""
        self._extend_ms = (extended.queue_ms, extended.compute_ms)
        self._queue_ms = grown.queue_ms
        self._pool = grown.value
        return extended.value, grown.value

    def phases(self, rows: int, start_ns: int, end_ns: int, failed: str) -> list[Phase]:
        """Returns one phase per level, without gaps.

        The levels of the pool lie end to end by the worker's times, the last one ending with the
        answer; what is left before them is the Extend and both ways.

        Args:
            rows: Pairs of the Extend.
            start_ns: When both were sent, Unix time, nanoseconds.
            end_ns: When both were answered.
            failed: Reason of the error that ended them; empty when they succeeded.
        """
        levels: list[Phase] = []
        grown = [(0.0, 0)] * len(self.level_spans)
        if self._pool is not None:
            grown = [(one.compute_ms, len(one.frontier)) for one in self._pool.levels]
        for span, (compute_ms, width) in reversed(list(zip(self.level_spans, grown, strict=True))):
            begin_ns = max(end_ns - int(compute_ms * 1e6), start_ns)
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
        levels[-1] = replace(levels[-1], queue_ms=self._queue_ms, same_call=False)
        queue_ms, compute_ms = self._extend_ms
        extend = Phase(
            "draft.extend",
            self._span.span_id,
            start_ns,
            end_ns,
            queue_ms=queue_ms,
            compute_ms=compute_ms,
            remote=True,
            rows=rows,
            failed=failed,
        )
        return [extend, *reversed(levels)]


class PhaseTimer:
    """Adds phases to a round."""

    def __init__(self, round_: Round, clock: Clock, trace: RequestTrace) -> None:
        self.round = round_
        self._clock = clock
        self._trace = trace

    @contextmanager
    def local(self, name: str, rows: int = 0) -> Iterator[None]:
        """Times work of the controller itself."""
        span = self._trace.name_span()
        start_ns = self._clock.now_ns()
        yield
        self.round.phases.append(
            Phase(name, span.span_id, start_ns, self._clock.now_ns(), rows=rows)
        )

    @contextmanager
    def remote(self, name: str, rows: int) -> Iterator[RemoteCall]:
        """Times one command to a worker; a failure is noted and passed on."""
        span = self._trace.name_span()
        call = RemoteCall(span)
        start_ns = self._clock.now_ns()
        failed = ""
        try:
            yield call
        except ArboristError as error:
            failed = error.reason
            raise
        except BaseException:
            failed = "CANCELLED"
            raise
        finally:
            self.round.phases.append(
                Phase(
                    name,
                    span.span_id,
                    start_ns,
                    self._clock.now_ns(),
                    queue_ms=call.queue_ms,
                    compute_ms=call.compute_ms,
                    remote=True,
                    rows=rows,
                    failed=failed,
                )
            )

    @contextmanager
    def remote_tree(self, rows: int, depth: int) -> Iterator[TreeCall]:
        """Times an Extend and the ExpandTree behind it; a failure is noted and passed on.

        Args:
            rows: Pairs of the Extend.
            depth: Levels of the tree, at least 2.
        """
        span = self._trace.name_span()
        call = TreeCall(span, [self._trace.name_span() for _ in range(depth - 1)])
        start_ns = self._clock.now_ns()
        failed = ""
        try:
            yield call
        except BaseException as error:
            failed = error.reason if isinstance(error, ArboristError) else "CANCELLED"
            raise
        finally:
            self.round.phases += call.phases(rows, start_ns, self._clock.now_ns(), failed)
