"""Targets are asked what they know of a prompt; whatever they answer, the session gets a target."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from tests.unit.orchestrator.scripted_worker import MODEL, UNKNOWN_CALL, ScriptedTarget, serving
from tests.unit.orchestrator.test_worker_connection import until
from tests.unit.orchestrator.test_worker_pool import SETTINGS, Directory

from arborist.core.prefix import Prefix
from arborist.orchestrator.placement import Placement
from arborist.orchestrator.worker_pool import GrpcWorkerPool, SessionWorkers

PROMPT = list(range(40))


async def connected(stack: AsyncExitStack, *targets: ScriptedTarget) -> GrpcWorkerPool:
    """Serves targets and connects to all of them."""
    addresses = [await stack.enter_async_context(serving(one)) for one in targets]
    pool = GrpcWorkerPool(Directory(addresses), "c", settings=SETTINGS)
    await pool.start()
    stack.push_async_callback(pool.aclose)
    await until(lambda: len(pool.targets) == len(targets))
    return pool


@pytest.mark.parametrize("other", [0, 15, None, UNKNOWN_CALL])
@pytest.mark.parametrize("knowing", ["w1", "w2"])
async def test_the_target_that_knows_the_prompt_gets_the_session(
    knowing: str, other: int | None
) -> None:
    """Also when the other one is silent, or too old to be asked."""
    names = ["w1", "w2"]
    targets = [
        ScriptedTarget(worker_id=name, known_tokens=30 if name == knowing else other)
        for name in names
    ]
    async with AsyncExitStack() as stack:
        pool = await connected(stack, *targets)
        workers = SessionWorkers(pool, MODEL.name, 5.0, Placement.of("t", PROMPT))
        chosen = await workers.target()
        assert chosen.worker_id == knowing  # type: ignore[attr-defined]


async def test_a_target_without_room_binds_a_session_to_no_model() -> None:
    """In the middle of a roll the next one may hold other weights: nothing was committed yet."""
    async with AsyncExitStack() as stack:
        old = ScriptedTarget(worker_id="w1", known_tokens=30)
        pool = await connected(stack, old, ScriptedTarget(worker_id="w2", digest="other"))
        workers = SessionWorkers(pool, MODEL.name, 5.0, Placement.of("t", PROMPT))
        full = await workers.target()
        other = await workers.target(full=[full])
        assert (full.info.digest, other.info.digest) == (MODEL.digest, "other")
        assert await workers.target(avoid=other) is other


async def test_a_target_without_room_is_chosen_only_if_there_is_no_other() -> None:
    """Also if it knows the prompt, and the other one was tried or lost before."""
    async with AsyncExitStack() as stack:
        knowing = ScriptedTarget(worker_id="w1", known_tokens=30)
        pool = await connected(stack, knowing, ScriptedTarget(worker_id="w2"))
        workers = SessionWorkers(pool, MODEL.name, 5.0, Placement.of("t", PROMPT))
        full = await workers.target()
        other = await workers.target(full=[full])
        assert other is not full
        assert await workers.target(avoid=other, full=[full]) is other
        assert await workers.target(full=[full, other]) in (full, other)


async def test_a_worker_cannot_say_that_it_knows_more_than_it_was_asked() -> None:
    """What it says is cut."""
    async with AsyncExitStack() as stack:
        pool = await connected(stack, ScriptedTarget(known_tokens=1000))
        assert await pool.targets[0].known_tokens(Prefix("s", (1, 2, 3)), 5.0) == 3


async def test_a_connection_that_closes_meanwhile_cancels_nobody() -> None:
    """Whoever asks gets 0, then and afterwards; a caller that is cancelled itself is."""
    async with AsyncExitStack() as stack:
        pool = await connected(stack, ScriptedTarget(known_tokens=None))
        (link,) = pool.targets
        asking = [asyncio.create_task(link.known_tokens(Prefix("s", (1,)), 60.0)) for _ in "ab"]
        await asyncio.sleep(0.05)
        asking[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking[0]
        await link.connection.aclose()
        assert await asking[1] == 0
        assert await link.known_tokens(Prefix("s", (1,)), 60.0) == 0
