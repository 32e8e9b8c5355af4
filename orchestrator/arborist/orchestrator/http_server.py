"""Carries the HTTP API in a controller of its own; under Ray, Serve does."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from arborist.core.errors import UnavailableError

# Of a request line and headers: over the most that `max_metadata_bytes` may allow.
_MAX_HEAD_BYTES = 1 << 22


class HttpServer:
    """One listening port, from `start` to `stop`."""

    def __init__(self, host: str, port: int) -> None:
        """Prepares; nothing is bound.

        Args:
            host: Address to bind.
            port: Port to bind; 0 = any.
        """
        self._host = host
        self._port = port
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.url = ""

    async def start(self, app: FastAPI) -> None:
        """Binds and serves.

        Args:
            app: What answers.

        Raises:
            UnavailableError: The port is in use or the host is not ours; one line.
            Exception: Whatever ended the server before it was up.
        """
        bound = self._bind()
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"http://{host}:{bound.getsockname()[1]}"
        settings = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            # The one that bounds headers before it has read them all.
            http="h11",
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
        )
        self._server = server = _Server(settings)
        self._serving = serving = asyncio.create_task(server.serve([bound]), name="http")
        ready = asyncio.create_task(server.ready.wait(), name="http-ready")
        try:
            await asyncio.wait((serving, ready), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if not server.ready.is_set():
            self._server = self._serving = None
            bound.close()
            await serving  # Raises what ended it.
            raise UnavailableError(f"the HTTP server at {self.url} ended before it was up")

    async def stop(self, grace_s: float) -> None:
        """Takes no more connections, and ends running requests after a while.

        Args:
            grace_s: Seconds that running requests get.
        """
        if self._server is None or self._serving is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, math.ceil(grace_s))
        self._server.should_exit = True
        await self._serving

    def _bind(self) -> socket.socket:
        try:
            return socket.create_server(
                (self._host, self._port),
                family=socket.AF_INET6 if ":" in self._host else socket.AF_INET,
            )
        except OSError as error:
            raise UnavailableError(
                f"controller.http_port = {self._port}: cannot listen on "
                f"{self._host}:{self._port} ({(error.strerror or 'no such address').lower()}); "
                "stop what uses it or choose another port"
            ) from None


class _Server(uvicorn.Server):
    """One that says when it is up, and leaves signals to the process it is a part of."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept."""
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield
