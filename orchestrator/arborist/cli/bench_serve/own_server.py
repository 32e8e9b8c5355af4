"""A server for the time of a measurement: draft, target and controller as processes, no Ray."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from arborist.cli.worker_process import WorkerProcess

_START_S = 120.0
_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class OwnServerSettings:
    """What to bring up.

    Attributes:
        config: File that all processes read; None = defaults.
        target: Folder or hub name of the target; None = as configured.
        draft: Folder or hub name of the head; None = as configured.
        dtype: Of both workers; None = as configured.
        device: Of both workers; None = as configured.
        num_threads: Compute threads of both workers; None = as configured.
        kv_capacity_tokens: KV of each worker, in tokens; None = as configured.
        max_sessions: Most requests decoded at a time.
        tracing: Whether every round is traced, as in production.
        trace_detail: level or round; None = as configured.
    """

    config: Path | None = None
    target: str | None = None
    draft: str | None = None
    dtype: str | None = None
    device: str | None = None
    num_threads: int | None = None
    kv_capacity_tokens: int | None = None
    max_sessions: int = 64
    tracing: bool = True
    trace_detail: str | None = None


@dataclass(frozen=True, slots=True)
class OwnServer:
    """What came up.

    Attributes:
        address: Of the public gRPC API.
        http_url: Of the HTTP API.
        metrics_urls: Name of each process → URL of its metrics.
    """

    address: str
    http_url: str
    metrics_urls: Mapping[str, str]


@asynccontextmanager
async def own_server(settings: OwnServerSettings) -> AsyncIterator[OwnServer]:
    """Starts everything, and stops it.

    Raises:
        UnavailableError: A process did not start; the message has its last line.
    """
    async with AsyncExitStack() as stack:
        traces = None
        if settings.tracing:
            folder = tempfile.TemporaryDirectory(prefix="arborist-bench-serve-")
            traces = Path(stack.enter_context(folder))
        started: dict[str, WorkerProcess] = {}

        async def start(role: str, addresses: Mapping[str, str]) -> str:
            process = WorkerProcess(_arguments(role, settings, addresses, traces))
            stack.push_async_callback(process.stop, _STOP_S)
            started[role] = process
            return await process.start(_START_S)

        target, draft = await asyncio.gather(start("target", {}), start("draft", {}))
        address = await start("controller", {"target": target, "draft": draft})
        urls = {role: one.metrics_url for role, one in started.items()}
        yield OwnServer(address, started["controller"].http_url, urls)


def _arguments(
    role: str, settings: OwnServerSettings, addresses: Mapping[str, str], traces: Path | None
) -> list[str]:
    flags: dict[str, object | None] = {
        "config": settings.config,
        "host": "127.0.0.1",
        "port": 0,
        "metrics-port": 0,
        "trace-file": None if traces is None else traces / f"{role}.jsonl",
    }
    if role == "controller":
        flags |= {
            "model": settings.target,
            "target-addresses": addresses["target"],
            "draft-addresses": addresses["draft"],
            "max-sessions": settings.max_sessions,
            "trace-detail": settings.trace_detail,
            # Any port, asked for or not: one that is configured may be in use.
            "http-port": 0,
        }
    else:
        flags |= {
            "model": settings.target if role == "target" else settings.draft,
            "dtype": settings.dtype,
            "device": settings.device,
            "num-threads": settings.num_threads,
            "kv-capacity-tokens": settings.kv_capacity_tokens,
            # A little more than can run: a session that ends may linger for a moment.
            "max-sessions": 2 * settings.max_sessions,
        }
    if role == "draft":
        flags["target-model"] = settings.target
    return [
        f"serve-{role}",
        *(f"--{name}={value}" for name, value in flags.items() if value is not None),
    ]
