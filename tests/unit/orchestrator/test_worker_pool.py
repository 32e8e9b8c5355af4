"""The pool keeps count of what its workers did, also of those it let go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry
from tests.unit.orchestrator.scripted_worker import ScriptedTarget, opened, serving
from tests.unit.orchestrator.test_worker_connection import REQUEST, until

from arborist.common.config import parse_config
from arborist.common.serving_metrics import ServingMetrics
from arborist.common.telemetry import SpanRecorder
from arborist.core.errors import DeadlineError, InvalidArgumentError, ResourceExhaustedError
from arborist.orchestrator import worker_pool as worker_pool_module
from arborist.orchestrator.controller import Controller
from arborist.orchestrator.directory import WorkerAddresses
from arborist.orchestrator.generation import GenerationRequest, SpeculationOptions
from arborist.orchestrator.worker_connection import ConnectionSettings
from arborist.orchestrator.worker_pool import GrpcWorkerPool, SessionWorkers

SETTINGS = ConnectionSettings(backoff_first_s=0.02, max_extensions=0)


@dataclass
class Directory:
    """Targets that are known, until they are not."""

    targets: list[str] = field(default_factory=list)

    async def snapshot(self) -> WorkerAddresses:
        """Returns them."""
        return WorkerAddresses(tuple(self.targets), ())


async def open_late(pool: GrpcWorkerPool, release: asyncio.Event) -> None:
    """Makes the only target answer an Open after its deadline."""
    await until(lambda: pool.targets)
    num_late = pool.num_late
    with pytest.raises(DeadlineError):
        await pool.targets[0].open("s", 1, REQUEST, 0.05)
    release.set()
    await until(lambda: pool.num_late == num_late + 1)


def late_target(release: asyncio.Event) -> ScriptedTarget:
    """A target that answers nothing before it may."""

    async def answer(command):
        await release.wait()
        return [opened(command)]

    return ScriptedTarget(answer)


async def test_late_results_of_a_worker_that_is_let_go_stay_counted() -> None:
    """The sum never falls, neither when a stream is lost nor when the worker leaves."""
    release = asyncio.Event()
    servicer = late_target(release)
    async with serving(servicer) as address:
        directory = Directory([address])
        pool = GrpcWorkerPool(directory, "c", settings=SETTINGS, period_s=0.01)
        await pool.start()
        seen: list[int] = []
        watching = asyncio.create_task(_sample(pool, seen))
        await open_late(pool, release)
        servicer.drop_streams()
        await until(lambda: servicer.attaches == 4 and pool.targets)
        assert pool.num_late == 1
        connection = pool.targets[0].connection
        directory.targets.clear()
        await until(lambda: not connection.attached)
        assert pool.num_late == 1
        await pool.aclose()
        assert pool.num_late == 1
        watching.cancel()
        assert seen == sorted(seen)


async def _sample(pool: GrpcWorkerPool, seen: list[int]) -> None:
    while True:
        seen.append(pool.num_late)
        await asyncio.sleep(0)


async def test_a_result_that_is_late_just_before_the_stop_is_counted() -> None:
    """The metrics have it, though nobody looked at the workers since."""
    release, registry = asyncio.Event(), CollectorRegistry()
    async with serving(late_target(release)) as address:
        controller = Controller(
            parse_config({}),
            Directory([address]),
            metrics=ServingMetrics(registry),
            recorder=SpanRecorder(),
            connection=SETTINGS,
        )
        await controller.start()
        await open_late(controller.workers, release)
        await controller.stop(0.0)

    assert registry.get_sample_value("arborist_late_results_total") == 1


@asynccontextmanager
async def controlling(servicer: ScriptedTarget) -> AsyncIterator[Controller]:
    """A controller of one target."""
    async with serving(servicer) as address:
        controller = Controller(
            parse_config({}),
            Directory([address]),
            metrics=ServingMetrics(CollectorRegistry()),
            recorder=SpanRecorder(),
            connection=SETTINGS,
        )
        await controller.start()
        await until(lambda: controller.ready)
        yield controller
        await controller.stop(0.0)


async def test_what_no_target_could_ever_hold_is_a_bad_request() -> None:
    """Refused at once, not after a wait for room that cannot come; clients are told the bound."""
    async with controlling(ScriptedTarget(kv_capacity_tokens=100)) as controller:
        assert controller.models()[0].context_length == 100 - 15 - 1
        for speculation, most in ((None, 84), (False, 99)):
            options = SpeculationOptions(enabled=speculation)
            for total, fits in ((most - 1, True), (most, True), (most + 1, False)):
                request = GenerationRequest((1,) * (total - 5), 5, speculation=options)
                if fits:
                    await controller.generate(request).aclose()
                    continue
                with pytest.raises(InvalidArgumentError, match=f"at most {most} tokens, the KV"):
                    controller.generate(request)
        assert controller.load() == (0, 0)


async def test_a_session_that_moves_does_not_wait_for_nobody(monkeypatch) -> None:
    """Sessions of ours make room in the end; where there is none, the wait is bounded."""
    monkeypatch.setattr(worker_pool_module, "_ROOM_PERIOD_S", 0.0)
    async with controlling(ScriptedTarget()) as controller:
        pool = controller.workers
        session = SessionWorkers(pool, "scripted", 1.0)
        pool.targets[0].sessions.add("another")
        for _ in range(200):
            await session.wait_for_room(ResourceExhaustedError("full"))
        pool.targets[0].sessions.clear()

        async def insist() -> None:
            for _ in range(200):
                await session.wait_for_room(ResourceExhaustedError("full"))

        with pytest.raises(ResourceExhaustedError, match="full"):
            await insist()


async def test_a_session_that_moves_waits_for_others_no_longer_than_it_may(monkeypatch) -> None:
    """What they hold may never be for it: another controller's sessions may take it first."""
    monkeypatch.setattr(worker_pool_module, "_ROOM_PERIOD_S", 0.01)
    monkeypatch.setattr(worker_pool_module, "_MOST_WAIT_FOR_ROOM_S", 0.05)
    async with controlling(ScriptedTarget()) as controller:
        session = SessionWorkers(controller.workers, "scripted", 1.0)
        controller.workers.targets[0].sessions.add("another")

        async def insist() -> None:
            for _ in range(1000):
                await session.wait_for_room(ResourceExhaustedError("full"))

        with pytest.raises(ResourceExhaustedError, match="full"):
            await insist()
        controller.workers.targets[0].sessions.clear()
