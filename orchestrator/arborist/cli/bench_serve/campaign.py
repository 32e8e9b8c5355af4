"""Measures every point several times, interleaved."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from arborist.cli.bench_serve.figures import ServiceLevel, run_figures
from arborist.cli.bench_serve.load_point import LoadPoint, in_turn
from arborist.cli.bench_serve.load_request import LoadRequest
from arborist.cli.bench_serve.load_run import LoadRun, RunResult
from arborist.cli.bench_serve.load_settings import LoadSettings, arrivals_s
from arborist.cli.bench_serve.process_figures import kept, spent
from arborist.cli.bench_serve.process_metrics import ProcessMetrics, ProcessState
from arborist.cli.bench_serve.sender import Sender
from arborist.client.prompt import Prompt, Speculation
from arborist.core.errors import UnavailableError

Json = dict[str, Any]
# How long a server may take to forget the last requests, and how often it is asked.
_SETTLE_S = 10.0
_SETTLE_PERIOD_S = 0.2
_WARM_UP_CLIENTS = 4


@dataclass(slots=True)
class Measurements:
    """What was measured.

    Attributes:
        runs: Figures of every run, by point; repetitions in order.
        kept: What the server's processes hold before and after; None = they were not asked.
    """

    runs: dict[LoadPoint, list[Json]] = field(default_factory=dict)
    kept: Json | None = None


class Campaign:
    """Points times repetitions.

    All points are measured once, then all again, so that what else the machine does hits all alike;
    modes of one load take turns, there and back.
    """

    def __init__(
        self,
        sender: Sender,
        settings: LoadSettings,
        prompts: Sequence[Prompt],
        shape: Speculation,
        level: ServiceLevel,
        metrics: ProcessMetrics | None,
    ) -> None:
        """Prepares; nothing is sent.

        Args:
            sender: Carries the requests.
            settings: What is sent.
            prompts: At least one.
            shape: Policy and size of trees; None fields = the server's.
            level: What counts as good.
            metrics: Of the server's processes; None = they are not asked.
        """
        self._sender = sender
        self._settings = settings
        self._prompts = prompts
        self._shape = shape
        self._level = level
        self._metrics = metrics

    async def measure(
        self, points: Sequence[LoadPoint], repetitions: int, progress: Callable[[LoadPoint], None]
    ) -> Measurements:
        """Runs every point `repetitions` times.

        Args:
            points: What to measure.
            repetitions: Runs of each point.
            progress: Called after every run.

        Raises:
            UnavailableError: Nothing could be completed at all.
        """
        found = Measurements({point: [] for point in points})
        for point in points:
            await self._warm_up(point)
        before = await self._states()
        for repetition in range(repetitions):
            for point in in_turn(points, repetition):
                found.runs[point].append(await self._run(point, repetition))
                progress(point)
        if self._metrics is not None:
            found.kept = kept(before, await self._settled())
        return found

    async def _run(self, point: LoadPoint, repetition: int) -> Json:
        before, cpu_s = await self._states(), time.process_time()
        requests = self._settings.requests(self._prompts, point.options(self._shape), repetition)
        result = await self._load(point, requests, repetition, self._settings.duration_s)
        cpu_s = time.process_time() - cpu_s
        figures = run_figures(result, self._level)
        figures["client_cpu_s"] = round(cpu_s, 3)
        took_s = result.end_s - result.begin_s
        figures["processes"] = spent(before, await self._states(), figures["rounds"], took_s)
        return figures

    async def _warm_up(self, point: LoadPoint) -> None:
        count = self._settings.warm_up
        if count == 0:
            return
        patient = replace(self._settings, cancel_share=0.0)
        requests = patient.requests(self._prompts, point.options(self._shape), 0)
        clients = min(point.concurrency or _WARM_UP_CLIENTS, count)
        run = LoadRun(self._sender, islice(requests, count), duration_s=None)
        result = await run.closed_loop(clients)
        failed = [one.reason for one in result.records if one.outcome == "failed"]
        if len(failed) == count:
            raise UnavailableError(f"every request of the warm-up failed: {failed[0]}")

    async def _load(
        self,
        point: LoadPoint,
        requests: Iterator[LoadRequest],
        repetition: int,
        duration_s: float | None,
    ) -> RunResult:
        run = LoadRun(self._sender, requests, duration_s=duration_s)
        if point.rate_per_s is None:
            return await run.closed_loop(point.concurrency or 1)
        arrivals = arrivals_s(point.rate_per_s, self._settings.seed + repetition)
        return await run.open_loop(arrivals, self._settings.max_in_flight)

    async def _states(self) -> dict[str, ProcessState]:
        return {} if self._metrics is None else await self._metrics.read()

    async def _settled(self) -> dict[str, ProcessState]:
        deadline_s = time.monotonic() + _SETTLE_S
        while True:
            states = await self._states()
            busy = any(
                one.num_sessions or one.kv_reserved_tokens or one.num_requests
                for one in states.values()
            )
            if not busy or time.monotonic() > deadline_s:
                return states
            await asyncio.sleep(_SETTLE_PERIOD_S)
