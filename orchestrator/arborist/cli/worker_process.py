"""A worker or controller as a process of its own, for commands that bring their server along."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Sequence

from arborist.common.inherited_config import inherited_environment
from arborist.core.errors import UnavailableError

_READY = re.compile(
    r"ready: .*?grpc://(?P<address>[^\s]+:\d+)(?: (?P<http_url>http://[^\s]+))?"
    r"(?:.* metrics=(?P<metrics_url>[^\s]+))?"
)


class WorkerProcess:
    """`arborist serve-draft`, `serve-target` or `serve-controller` under our wing.

    Attributes:
        http_url: Of its HTTP API, known once it is ready; empty = none.
        metrics_url: Where it shows its metrics, likewise; empty = nowhere.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        """Prepares a process; nothing runs yet.

        It inherits this process's environment, API keys as digests.

        Args:
            arguments: What follows `arborist` on the command line.
        """
        self._arguments = list(arguments)
        self.http_url = ""
        self.metrics_url = ""
        self._process: asyncio.subprocess.Process | None = None
        self._tail: list[str] = []
        self._drain: asyncio.Task[None] | None = None

    async def start(self, timeout_s: float) -> str:
        """Starts the process and waits for its ready line.

        Returns:
            Address of its gRPC port, host:port.
        Raises:
            UnavailableError: It ended or did not get ready in time; the message has its last
                line.
        """
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "arborist.cli.main",
            *self._arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=inherited_environment(),
        )
        try:
            async with asyncio.timeout(timeout_s):
                address = await self._await_ready(self._process)
        except TimeoutError:
            await self.stop(1.0)
            raise UnavailableError(
                f"{self._arguments[0]} was not ready in {timeout_s:g} s"
            ) from None
        self._drain = asyncio.create_task(self._drain_output(self._process))
        return address

    async def stop(self, grace_s: float) -> None:
        """Ends the process: SIGTERM, then SIGKILL after `grace_s`. Safe to call twice."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(grace_s):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._drain is not None:
            await self._drain
        self._process = None

    async def _await_ready(self, process: asyncio.subprocess.Process) -> str:
        async for line in self._lines(process):
            if match := _READY.search(line):
                self.http_url = match["http_url"] or ""
                self.metrics_url = match["metrics_url"] or ""
                return match["address"]
        await process.wait()
        last = self._tail[-1] if self._tail else "no output"
        raise UnavailableError(f"{self._arguments[0]} did not start: {last}")

    async def _drain_output(self, process: asyncio.subprocess.Process) -> None:
        async for _ in self._lines(process):
            pass

    async def _lines(self, process: asyncio.subprocess.Process) -> AsyncIterator[str]:
        if process.stdout is None:
            return
        async for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            if line:
                self._tail = [*self._tail[-9:], line]
                yield line
