"""One completion under way: decodes in a task of its own, a few rounds ahead of its reader."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from arborist.common.errors import internal_error
from arborist.common.serving_metrics import ServingMetrics
from arborist.common.status_line import StatusLine
from arborist.core.errors import ArboristError, ResourceExhaustedError
from arborist.orchestrator.admission import Ticket
from arborist.orchestrator.clock import Clock
from arborist.orchestrator.generation import DeliveredRound, GenerationEvent, Started, Summary
from arborist.orchestrator.generation_account import GenerationAccount, round_sample
from arborist.orchestrator.round import Round
from arborist.orchestrator.session import FinishReason, Session
from arborist.orchestrator.spans import GenerationTrace

_log = logging.getLogger(__name__)

# Rounds decoded before a reader took them: enough to overlap sending with the next round.
_MAX_AHEAD = 8


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at decoding; the next one starts afresh if the targets had no room.

    Attributes:
        session: Its log.
        rounds: The decode loop.
        close: Frees the workers' state; safe to call twice.
    """

    session: Session
    rounds: AsyncGenerator[Round, None]
    close: Callable[[], None]


BeginAttempt: TypeAlias = Callable[[int], Attempt]
"""Makes the decoder of a try, counted from 0."""


@dataclass(frozen=True, slots=True)
class GenerationPorts:
    """What a generation reports to.

    Attributes:
        metrics: Prometheus series.
        status: The periodic log line.
        clock: Time.
        ended: Called once when the generation is over, with the seconds it took.
    """

    metrics: ServingMetrics
    status: StatusLine
    clock: Clock
    ended: Callable[[RunningGeneration, float], None]


class RunningGeneration:
    """Implements `generation.Generation`; made by the controller.

    Attributes:
        decoding: Done once decoding is over and the workers' state is freed; never fails.
    """

    def __init__(
        self,
        started: Started,
        ticket: Ticket,
        begin: BeginAttempt,
        account: GenerationAccount,
        trace: GenerationTrace,
        ports: GenerationPorts,
    ) -> None:
        """Starts decoding as soon as the ticket's turn comes.

        Args:
            started: First event.
            ticket: Place in the queue.
            begin: Makes the decoder.
            account: Empty account.
            trace: Where spans go.
            ports: Where numbers go.
        """
        self._started = started
        self._ticket = ticket
        self._begin = begin
        self._account = account
        self._trace = trace
        self._ports = ports
        self._events: deque[Started | Round] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._last: Round | None = None
        self._reason: FinishReason | None = None
        self._failure: ArboristError | None = None
        self._decoded = False
        self._left = False
        self._cancelled = False
        self._over = False
        self._loop = asyncio.get_running_loop()
        self.decoding: asyncio.Future[None] = self._loop.create_future()
        self._task: asyncio.Task[None] | None = self._loop.create_task(
            self._run(), name=f"generation-{started.request_id}"
        )
        self._task.add_done_callback(self._end_decoding)

    # ---- reading ---------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[GenerationEvent]:
        """Returns itself."""
        return self

    async def __anext__(self) -> GenerationEvent:
        """Returns the next event.

        Raises:
            ArboristError: The request cannot go on.
        """
        if self._over:
            raise StopAsyncIteration
        self._settle_last()
        while not self._events and not self._decoded:
            self._reader = self._loop.create_future()
            await self._reader
        if self._over:  # It was left meanwhile.
            raise StopAsyncIteration
        if not self._events:
            return self._end()
        event = self._events.popleft()
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)
        if isinstance(event, Started):
            return event
        self._account.add(event)
        self._last = event
        return DeliveredRound.of(event)

    async def finish(self, reason: FinishReason, num_tokens: int) -> None:
        """Ends the output early; the next event is the Summary.

        Args:
            reason: Why.
            num_tokens: Tokens that count as delivered, at most those yielded.
        """
        if self._over:
            return
        await self._stop_decoding()
        self._events.clear()
        self._failure = None
        self._reason = reason
        cut = max(self._account.completion_tokens - num_tokens, 0)
        self._account.completion_tokens -= cut
        self._settle_last(cut)

    def leave(self) -> None:
        """Begins `aclose` without waiting: nothing that cancels its caller can undo it."""
        if self._over or self._left:
            return
        self._left = True
        self._settle_last()
        if self._decoded:
            self._close(FinishReason.CANCELLED, None)
        else:
            self._cancel_decoding()

    async def aclose(self) -> None:
        """Ends the request and frees the workers' state at once; safe to call twice.

        Cancelled while it waits, it goes on all the same.
        """
        self.leave()
        if not self._over:
            await asyncio.wait([self.decoding])

    def abort(self, error: ArboristError) -> None:
        """Ends the request with an error for its reader, who still gets what was decoded."""
        if not self._decoded:
            self._failure = error
            self._cancel_decoding()

    def _end(self) -> Summary:
        failure, self._failure = self._failure, None
        if failure is not None:
            self._close(None, failure)
            raise failure
        reason = self._reason or FinishReason.CANCELLED
        self._close(reason, None)
        return self._account.summary(reason, self._ports.clock.now_ns())

    def _settle_last(self, cut: int = 0) -> None:
        """Reports the round yielded last: only now is it known how much of it counts."""
        round_, self._last = self._last, None
        if round_ is None:
            return
        self._trace.deliver(round_, len(round_.tokens) - cut)
        metrics, status = self._ports.metrics, self._ports.status
        if round_.round_index < 0:
            metrics.observe_first_token((round_.end_ns - self._account.arrived_ns) / 1e9)
        else:
            metrics.observe_round(round_sample(round_))
        status.observe_round(len(round_.tokens), round_.accepted_count, drafted=round_.speculated)

    def _close(self, reason: FinishReason | None, error: ArboristError | None) -> None:
        self._over = True
        summary = self._account.summary(
            reason or FinishReason.CANCELLED, self._ports.clock.now_ns()
        )
        if error is not None:
            self._ports.metrics.count_failure(error.reason)
        else:
            self._ports.metrics.observe_finish(
                summary.finish_reason.value, summary.timing.total_ms / 1e3
            )
        self._trace.finish(
            {
                "request_id": self._started.request_id,
                "model": self._started.model,
                "finish_reason": "error" if error is not None else summary.finish_reason.value,
                "prompt_tokens": summary.prompt_tokens,
                "completion_tokens": summary.completion_tokens,
                "rounds": summary.speculation.rounds,
                "draft_tokens": summary.speculation.draft_tokens,
                "accepted_tokens": summary.speculation.accepted_tokens,
                "tau": summary.speculation.tau,
                "rounds_without_draft": summary.speculation.rounds_without_draft,
                "queue_ms": summary.timing.queue_ms,
                "time_to_first_token_ms": summary.timing.time_to_first_token_ms,
                "tokens_per_s": summary.timing.tokens_per_s,
            },
            error.reason if error is not None else "",
        )
        self._ports.ended(self, summary.timing.total_ms / 1e3)

    # ---- decoding --------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._ticket.turn()
            self._account.admitted_ns = self._ports.clock.now_ns()
            queue_s = (self._account.admitted_ns - self._account.arrived_ns) / 1e9
            self._ports.metrics.observe_admission(self._started.prompt_tokens, queue_s)
            self._push(self._started)
            attempt = 0
            while not await self._try(self._begin(attempt)):
                await self._ticket.turn()
                attempt += 1
        except ArboristError as error:
            self._failure = error
        except Exception:  # noqa: BLE001 - a bug must not take the reader with it
            # The reader gets an incident number, the log what happened.
            self._failure = internal_error()
            _log.exception("request %s: %s", self._started.request_id, self._failure.message)

    def _end_decoding(self, task: asyncio.Task[None]) -> None:
        # Not in the coroutine's `finally`: a task cancelled before its first step never gets there.
        self._decoded = True
        # It keeps what it ended with, frames and all: a circle that only garbage collection finds.
        self._task = None
        try:
            self._ticket.leave()
            self._wake_reader()
            if self._left and not self._over:
                self._close(FinishReason.CANCELLED, None)
        finally:
            if not self.decoding.done():
                self.decoding.set_result(None)

    async def _try(self, attempt: Attempt) -> bool:
        """Decodes to the end.

        Returns:
            False when the targets had no room, and the request is to wait for its next turn.
        """
        begun = False
        try:
            async with aclosing(attempt.rounds) as rounds:
                async for round_ in rounds:
                    begun = True
                    self._push(round_)
                    await self._room()
        except ResourceExhaustedError as error:
            if begun:
                raise
            attempt.close()
            self._trace.discard()
            self._ticket.step_back(error)
            return False
        finally:
            attempt.close()
        self._reason = attempt.session.finish_reason
        return True

    async def _room(self) -> None:
        while len(self._events) >= _MAX_AHEAD:
            self._writer = self._loop.create_future()
            await self._writer

    def _push(self, event: Started | Round) -> None:
        self._events.append(event)
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _cancel_decoding(self) -> None:
        # Not `cancelling()`: a timeout of its own may be cancelling the task for a moment.
        if self._task is not None and not self._cancelled:
            self._cancelled = True
            self._task.cancel()

    async def _stop_decoding(self) -> None:
        self._cancel_decoding()
        await asyncio.wait([self.decoding])
