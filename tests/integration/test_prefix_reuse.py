"""A chat over two controllers, two targets and two drafts computes nothing twice.

Its client speaks the public API and changes the controller with every turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from prometheus_client import CollectorRegistry
from tests.integration.http_server import grpc_server
from tests.integration.loopback import (
    PAIR,
    SETTINGS,
    Deployment,
    deployment,
    golden_draft,
    patient,
)

from arborist.client import AsyncClient, Completion, Speculation
from arborist.common.config import parse_config
from arborist.common.serving_metrics import ServingMetrics
from arborist.common.telemetry import SpanRecorder
from arborist.core.engine import Prefill, TargetOutcome, TargetWork
from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.validator import RequestLimits
from arborist.orchestrator.controller import Controller
from arborist.target.engine import load_target

NUM_TURNS = 10
TURN_TOKENS = 12
ANSWER_TOKENS = 16
# Trees that follow the load would differ from run to run.
FIXED_TREES = Speculation(adaptive=False)


class CountingTarget:
    """The golden target, and how many prompt tokens it computed."""

    def __init__(self, prefix_cache_tokens: int) -> None:
        self.engine = load_target(
            PAIR / "target",
            device="cpu",
            dtype="float32",
            kv_capacity_tokens=4096,
            prefix_cache_tokens=prefix_cache_tokens,
            name="golden",
        )
        self.num_prefilled = 0
        self._run = self.engine.run
        self.engine.run = self._count  # type: ignore[method-assign]

    def _count(self, batch: Sequence[TargetWork]) -> list[TargetOutcome]:
        self.num_prefilled += sum(len(work.tokens) for work in batch if isinstance(work, Prefill))
        return self._run(batch)


class Drafts:
    """Two golden heads."""

    def __init__(self, prefix_cache_tokens: int) -> None:
        self.engines: list[Any] = [golden_draft(), golden_draft()]
        for engine in self.engines:
            if prefix_cache_tokens:
                engine.share_prefixes(prefix_cache_tokens)


async def second_controller(running: Deployment, stack: AsyncExitStack) -> Controller:
    """Starts another controller over the same workers."""
    controller = Controller(
        patient(parse_config({})),
        running.directory,
        metrics=ServingMetrics(CollectorRegistry()),
        recorder=SpanRecorder(),
        connection=SETTINGS,
    )
    await controller.start()
    stack.push_async_callback(controller.stop, 0.0)
    await controller.wait_ready(20.0, want_draft=True)
    return controller


async def client_of(controller: Controller, stack: AsyncExitStack) -> AsyncClient:
    """Opens a controller's public door and returns a client of it."""
    config = parse_config({})
    limits = RequestLimits.from_config(config.controller, config.speculation)
    completions = Completions(controller, None, limits)
    address = await stack.enter_async_context(grpc_server(completions))
    return await stack.enter_async_context(AsyncClient(address))


async def chat(
    running: Deployment, clients: list[AsyncClient], first_turn: int
) -> tuple[list[Completion], list[int]]:
    """Runs a chat whose turns go to the controllers in turn; returns its turns and last prompt."""
    prompt = [3 + (11 * at) % 490 for at in range(first_turn)]
    turns: list[Completion] = []
    for turn in range(NUM_TURNS):
        if turn:
            prompt += [
                *turns[-1].token_ids,
                *(5 + (17 * turn + at) % 480 for at in range(TURN_TOKENS)),
            ]
        client = clients[turn % len(clients)]
        turns.append(
            await client.complete(
                prompt, max_tokens=ANSWER_TOKENS, ignore_eos=True, speculation=FIXED_TREES
            )
        )
        await running.wait_idle()
    return turns, prompt


async def test_a_chat_of_ten_turns_computes_every_prompt_token_once() -> None:
    """Its turns say what they say without a cache, with trees as good."""
    found = []
    for prefix_cache_tokens in (0, 2000):
        targets = [CountingTarget(prefix_cache_tokens) for _ in range(2)]
        drafts = Drafts(prefix_cache_tokens)
        async with (
            deployment(targets=[one.engine for one in targets], drafts=drafts.engines) as running,
            AsyncExitStack() as stack,
        ):
            controllers = [running.controller, await second_controller(running, stack)]
            clients = [await client_of(one, stack) for one in controllers]
            turns, prompt = await chat(running, clients, 20)
            ids = [one.controller_id for one in controllers]
            assert [one.started.request_id.rpartition("-")[0] for one in turns] == ids * 5
            found.append((turns, sum(one.num_prefilled for one in targets)))
            for one in targets:
                one.engine.check_integrity()
            for engine in drafts.engines:
                engine.check_integrity()
            found_by_drafts = sum(one.prefix_counts.num_hits for one in drafts.engines)
    (plain, num_plain), (cached, num_cached) = found

    assert [one.token_ids for one in cached] == [one.token_ids for one in plain]
    assert num_plain > 3 * len(prompt)
    # Whatever a round computed is not prefilled; nothing is computed twice.
    assert num_cached <= len(prompt)
    assert found_by_drafts > len(prompt)
    # Every answer tells what of its prompt was there already.
    num_told = sum(one.summary.cached_prompt_tokens for one in cached)
    assert num_told + num_cached == sum(one.started.prompt_tokens for one in cached)
    assert sum(one.summary.cached_prompt_tokens for one in plain) == 0
    taus = [turns[-1].summary.speculation.tau for turns in (plain, cached)]
    assert abs(taus[1] - taus[0]) <= 0.02 * taus[0]
