"""Requests that wait: a deadline, a cancellation and a full share end them before any work."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
import pytest
from tests.integration.conftest import PROMPTS
from tests.integration.loopback import Deployment, collect, deployment, until

from arborist.client import AsyncClient
from arborist.common.config import parse_config
from arborist.core.engine import TargetEngine
from arborist.core.errors import DeadlineError, ResourceExhaustedError
from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.generation_servicer import GenerationServicer
from arborist.orchestrator.api.validator import RequestLimits
from arborist.orchestrator.generation import GenerationRequest
from arborist.v1 import generation_pb2_grpc as pb_grpc

PROMPT = list(PROMPTS[0])


@asynccontextmanager
async def door(running: Deployment) -> AsyncIterator[AsyncClient]:
    """A client of the deployment's public gRPC API."""
    server = grpc.aio.server()
    pb_grpc.add_GenerationServiceServicer_to_server(
        GenerationServicer(Completions(running.controller, None, RequestLimits())), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            yield client
    finally:
        await server.stop(None)


class Held:
    """Keeps the target's forwards from beginning, and counts what was opened there."""

    def __init__(self, engine: TargetEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_go = threading.Event()
        self.num_opened = 0
        engine_open, engine_run = engine.open, engine.run

        def counting_open(*arguments):
            self.num_opened += 1
            return engine_open(*arguments)

        def held_run(batch):
            self.may_go.wait(60)
            return engine_run(batch)

        monkeypatch.setattr(engine, "open", counting_open)
        monkeypatch.setattr(engine, "run", held_run)


async def test_a_queued_request_ends_with_its_deadline_or_its_client(target_engine, monkeypatch):
    """The place in the queue is free again and no worker ever heard of it."""
    held = Held(target_engine, monkeypatch)
    config = parse_config({"test": {"controller": {"max_sessions": 1, "max_queued_requests": 1}}})
    async with (
        deployment(targets=[target_engine], drafts=[], config=config) as running,
        door(running) as client,
    ):
        load = running.controller.load
        first = asyncio.create_task(client.complete(PROMPT, max_tokens=4, ignore_eos=True))
        await until(lambda: held.num_opened == 1)
        with pytest.raises(DeadlineError):
            await client.complete(PROMPT, max_tokens=4, timeout_s=0.2)
        await until(lambda: load() == (1, 0))
        left = asyncio.create_task(client.complete(PROMPT, max_tokens=4))
        await until(lambda: load() == (1, 1))
        with pytest.raises(ResourceExhaustedError) as refused:
            await client.complete(PROMPT, max_tokens=4)
        assert refused.value.retry_after_ms > 0
        left.cancel()
        await until(lambda: load() == (1, 0))

        held.may_go.set()
        assert (await first).summary.completion_tokens == 4
        assert held.num_opened == 1
        await running.wait_idle()
        assert load() == (0, 0)


async def test_a_client_over_its_share_is_refused_and_others_are_not(target_engine, monkeypatch):
    """The bound is per key; what ends makes room again."""
    held = Held(target_engine, monkeypatch)
    config = parse_config({"test": {"controller": {"max_requests_per_key": 1}}})
    async with (
        deployment(targets=[target_engine], drafts=[], config=config) as running,
        door(running) as client,
    ):
        first = asyncio.create_task(client.complete(PROMPT, max_tokens=4))
        await until(lambda: held.num_opened == 1)
        with pytest.raises(ResourceExhaustedError, match="of this client"):
            await client.complete(PROMPT, max_tokens=4)
        other = running.controller.generate(GenerationRequest(PROMPTS[0], 4, client_key="other"))

        held.may_go.set()
        assert (await first).token_ids
        assert (await collect(other)).tokens
        assert (await client.complete(PROMPT, max_tokens=4)).token_ids
        await running.wait_idle()
