"""Sends the requests of one run, closed or open loop, and keeps what became of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

from arborist.cli.bench_serve.load_request import LoadRequest
from arborist.cli.bench_serve.record import RequestRecord
from arborist.cli.bench_serve.sender import Delivery, RoundTotals, Sender
from arborist.core.errors import ArboristError

CLIENT_LIMIT = "CLIENT_LIMIT"
# What a client that leaves in the prefill takes for others' time to the first token at first.
_FIRST_TOKEN_S = 0.05


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run.

    Attributes:
        records: Every request, in the order of sending.
        begin_s: When the run began.
        end_s: When its last request had ended, or it was cut off.
        loaded_until_s: Until when the load was whole: as soon as there is nothing more to send,
            clients fall idle one by one.
    """

    records: list[RequestRecord]
    begin_s: float
    end_s: float
    loaded_until_s: float


class LoadRun:
    """One run; used once."""

    def __init__(
        self,
        sender: Sender,
        requests: Iterator[LoadRequest],
        *,
        duration_s: float | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Prepares; nothing is sent.

        Args:
            sender: Carries the requests.
            requests: What to send; endless only with a duration.
            duration_s: Seconds after which what is under way is cancelled; None = never.
            clock: Seconds.
        """
        self._sender = sender
        self._requests = requests
        self._duration_s = duration_s
        self._clock = clock
        self._records: list[RequestRecord] = []
        self._begin_s = 0.0
        self._loaded_until_s: float | None = None
        self._first_token_s = _FIRST_TOKEN_S

    async def closed_loop(self, concurrency: int) -> RunResult:
        """Keeps so many requests under way until there are no more.

        Args:
            concurrency: Clients.
        """
        self._begin_s = self._clock()
        return await self._finish([self._client() for _ in range(concurrency)])

    async def open_loop(self, arrivals_s: Iterable[float], max_in_flight: int) -> RunResult:
        """Sends requests when they are due.

        Args:
            arrivals_s: When each is due, in seconds since the beginning.
            max_in_flight: What is due while so many are under way is not sent.
        """
        self._begin_s = self._clock()
        return await self._finish([self._arrive(arrivals_s, max_in_flight)])

    async def _finish(self, coroutines: list[object]) -> RunResult:
        tasks = [asyncio.ensure_future(one) for one in coroutines]  # type: ignore[call-overload]
        try:
            await asyncio.wait(tasks, timeout=self._duration_s)
        finally:
            end_s = self._clock()
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for one in ended:
            if isinstance(one, Exception):
                raise one
        loaded_until_s = end_s if self._loaded_until_s is None else self._loaded_until_s
        return RunResult(self._records, self._begin_s, end_s, loaded_until_s)

    async def _client(self) -> None:
        while (request := self._next()) is not None:
            await self._send(request, self._clock())

    async def _arrive(self, arrivals_s: Iterable[float], max_in_flight: int) -> None:
        under_way: set[asyncio.Task[None]] = set()
        try:
            for at_s in arrivals_s:
                request = self._next()
                if request is None:
                    break
                due_s = self._begin_s + at_s
                await asyncio.sleep(due_s - self._clock())
                if len(under_way) >= max_in_flight:
                    refused = RequestRecord(due_s, "failed", CLIENT_LIMIT, end_s=due_s)
                    self._records.append(refused)
                    continue
                task = asyncio.create_task(self._send(request, due_s))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            await asyncio.gather(*under_way)
        finally:
            left = list(under_way)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def _next(self) -> LoadRequest | None:
        request = next(self._requests, None)
        if request is None and self._loaded_until_s is None:
            self._loaded_until_s = self._clock()
        return request

    async def _send(self, request: LoadRequest, due_s: float) -> None:
        record = RequestRecord(due_s)
        self._records.append(record)
        try:
            await self._read(request, record)
        except ArboristError as error:
            record.outcome, record.reason = "failed", error.reason
        finally:
            record.end_s = self._clock()

    async def _read(self, request: LoadRequest, record: RequestRecord) -> None:
        cancel = request.cancel
        patience_s = max_tokens = None
        if cancel is not None and cancel.phase == "prefill":
            patience_s = cancel.share * self._first_token_s
        elif cancel is not None:
            max_tokens = 1 + int(cancel.share * request.max_tokens)
        try:
            async with (
                asyncio.timeout(patience_s) as patience,
                aclosing(self._sender.stream(request)) as deliveries,
            ):
                async for one in deliveries:
                    if isinstance(one, RoundTotals):
                        record.num_rounds = one.num_rounds
                        record.accepted_tokens = one.accepted_tokens
                        record.draft_tokens = one.draft_tokens
                        continue
                    self._note(one, record)
                    if patience_s is not None or record.num_tokens >= (max_tokens or 1 << 62):
                        record.outcome = "cancelled"
                        return
        except TimeoutError:
            if not patience.expired():
                raise
            record.outcome = "cancelled"
            return
        record.outcome = "completed"

    def _note(self, delivery: Delivery, record: RequestRecord) -> None:
        now_s = self._clock()
        if not record.message_s:
            self._first_token_s += 0.1 * (now_s - record.due_s - self._first_token_s)
        record.message_s.append(now_s)
        record.message_tokens.append(delivery.num_tokens)
        if delivery.accepted_count is not None:
            record.num_rounds += 1
            record.accepted_tokens += delivery.accepted_count
            record.draft_tokens += delivery.num_draft_tokens
