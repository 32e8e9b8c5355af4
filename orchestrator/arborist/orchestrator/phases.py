"""Times the parts of a round and gives each remote part its span."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from arborist.core.errors import ArboristError
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
