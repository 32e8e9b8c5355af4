"""HTTP carried by a controller of its own."""

import asyncio
import signal
import socket

import httpx
import pytest
from fastapi import FastAPI

from arborist.core.errors import UnavailableError
from arborist.orchestrator import http_server
from arborist.orchestrator.http_server import HttpServer


async def ask_again_and_again(client: httpx.AsyncClient) -> None:
    """Asks on new connections until one is refused."""
    while True:
        await client.get("/nothing", headers={"Connection": "close"})


async def test_a_request_under_way_may_end_when_the_server_stops() -> None:
    """New connections are refused meanwhile, and signals stay with whoever had them."""
    begun, may_end = asyncio.Event(), asyncio.Event()
    app = FastAPI()

    @app.get("/slow")
    async def slow() -> str:
        begun.set()
        await may_end.wait()
        return "done"

    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    server = HttpServer("127.0.0.1", 0)
    await server.start(app)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
        request = asyncio.create_task(client.get("/slow"))
        await begun.wait()
        stopping = asyncio.create_task(server.stop(20))
        async with httpx.AsyncClient(base_url=server.url) as late:
            with pytest.raises(httpx.TransportError):
                await ask_again_and_again(late)
        assert not stopping.done()
        may_end.set()
        assert (await request).json() == "done"
    await stopping


@pytest.mark.parametrize("failure", [RuntimeError("no loop"), None])
async def test_a_server_that_ends_in_its_startup_is_waited_for_no_longer(
    monkeypatch: pytest.MonkeyPatch, failure: Exception | None
) -> None:
    """What ended it is raised; the port is free again and there is nothing to stop."""

    async def serve(self: object, sockets: list[socket.socket]) -> None:
        if failure is not None:
            raise failure

    monkeypatch.setattr(http_server._Server, "serve", serve)
    server = HttpServer("127.0.0.1", 0)
    kind, said = (UnavailableError, "before it was up") if failure is None else (RuntimeError, "no")
    with pytest.raises(kind, match=said):
        await asyncio.wait_for(server.start(FastAPI()), 10)

    port = int(server.url.rpartition(":")[2])
    socket.create_server(("127.0.0.1", port)).close()
    await server.stop(0)


async def test_a_port_in_use_is_named() -> None:
    """One line with the setting; nothing to stop afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = HttpServer("127.0.0.1", port)
        with pytest.raises(UnavailableError, match=rf"controller\.http_port = {port}: .*in use"):
            await server.start(FastAPI())
    await server.stop(0)
