"""The embedded pair behind both doors of one controller: HTTP by uvicorn, and gRPC."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import grpc.aio
import torch
import uvicorn
from fastapi import FastAPI
from tests.integration.loopback import Deployment, deployment

from arborist.common.config import parse_config
from arborist.common.default_pair import default_pair_directory
from arborist.draft.engine import load_draft
from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.generation_servicer import GenerationServicer
from arborist.orchestrator.api.http import create_http_app
from arborist.orchestrator.api.tokenizer import load_tokenizer
from arborist.orchestrator.api.validator import RequestLimits
from arborist.target.engine import load_target
from arborist.v1 import generation_pb2_grpc as pb_grpc

MODEL = "arborist-default"
PAIR = default_pair_directory()
CAPACITY_TOKENS = 16_384


@dataclass(frozen=True)
class BothDoors:
    """Where it serves.

    Attributes:
        url: Of the HTTP API.
        address: host:port of the gRPC API.
        loop: Event loop of everything.
        running: Controller and workers.
    """

    url: str
    address: str
    loop: asyncio.AbstractEventLoop
    running: Deployment

    def wait_idle(self) -> None:
        """Waits until no worker keeps anything of any session; fails if one does."""
        asyncio.run_coroutine_threadsafe(self.running.wait_idle(), self.loop).result()


@contextmanager
def both_doors() -> Iterator[BothDoors]:
    """Serves from a thread of its own, until the end of the block."""
    started: list[BothDoors] = []
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with _served() as doors:
            started.append(doors)
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="both-doors")
    thread.start()
    ready.wait()
    try:
        (doors,) = started
        yield doors
        doors.loop.call_soon_threadsafe(stop.set)
    finally:
        if started:
            started[0].loop.call_soon_threadsafe(stop.set)
        thread.join()


@asynccontextmanager
async def _served() -> AsyncIterator[BothDoors]:
    torch.set_num_threads(1)
    target = load_target(
        PAIR / "target",
        device="cpu",
        dtype="float32",
        kv_capacity_tokens=CAPACITY_TOKENS,
        name=MODEL,
    )
    draft = load_draft(
        PAIR / "head",
        PAIR / "target",
        device="cpu",
        dtype="float32",
        kv_capacity_tokens=CAPACITY_TOKENS,
    )
    config = parse_config({})
    async with deployment(targets=[target], drafts=[draft], config=config) as running:
        limits = RequestLimits.from_config(config.controller, config.speculation)
        tokenizer = load_tokenizer(str(PAIR / "target"))
        completions = Completions(running.controller, tokenizer, limits)
        app = create_http_app(completions, running.registry)
        async with grpc_server(completions) as address, http_server(app) as url:
            yield BothDoors(url, address, asyncio.get_running_loop(), running)


@asynccontextmanager
async def grpc_server(completions: Completions) -> AsyncIterator[str]:
    """Serves the public gRPC API on a free port; yields its address."""
    server = grpc.aio.server()
    pb_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(completions), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def http_server(app: FastAPI) -> AsyncIterator[str]:
    """Serves an application on a free port; yields its URL."""
    settings = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(settings)
    serving = asyncio.ensure_future(server.serve())
    try:
        while not server.started:  # noqa: ASYNC110 - uvicorn tells nobody
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving
