"""What the server's processes say of themselves on their Prometheus ports."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from arborist.core.errors import InvalidArgumentError, UnavailableError

_TIMEOUT_S = 10.0
_MAX_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One process at one moment; None = it does not say.

    Attributes:
        cpu_s: CPU time since its start, in seconds.
        memory_bytes: Resident memory.
        num_descriptors: Open file descriptors.
        num_tasks: Tasks of its event loop.
        num_sessions: Sessions open at a worker.
        kv_reserved_tokens: KV positions reserved at a worker.
        num_requests: Requests running or waiting at a controller.
        num_forwards: Forwards a worker ran.
        forward_s: Time of these forwards, in seconds.
        forward_rows: Commands of these forwards.
        forward_tokens: Tokens and nodes of these forwards.
    """

    cpu_s: float | None = None
    memory_bytes: float | None = None
    num_descriptors: float | None = None
    num_tasks: float | None = None
    num_sessions: float | None = None
    kv_reserved_tokens: float | None = None
    num_requests: float | None = None
    num_forwards: float | None = None
    forward_s: float | None = None
    forward_rows: float | None = None
    forward_tokens: float | None = None


_SERIES = {
    "cpu_s": ("process_cpu_seconds_total",),
    "memory_bytes": ("process_resident_memory_bytes",),
    "num_descriptors": ("process_open_fds",),
    "num_tasks": ("arborist_event_loop_tasks",),
    "num_sessions": ("arborist_worker_sessions",),
    "kv_reserved_tokens": ("arborist_kv_reserved_tokens",),
    "num_requests": ("arborist_num_requests_running", "arborist_num_requests_waiting"),
    "num_forwards": ("arborist_forward_seconds_count",),
    "forward_s": ("arborist_forward_seconds_sum",),
    "forward_rows": ("arborist_forward_rows_sum",),
    "forward_tokens": ("arborist_forward_tokens_total",),
}


class ProcessMetrics:
    """Reads the metrics of some processes."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        """Keeps where they are.

        Args:
            urls: Name of the process → URL of its metrics.
        """
        self._urls = dict(urls)
        # On this machine, or given by hand: never through a proxy.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    async def read(self) -> dict[str, ProcessState]:
        """Returns the state of every process.

        Raises:
            UnavailableError: One of them does not answer.
        """
        states = await asyncio.gather(
            *(asyncio.to_thread(self._read, url) for url in self._urls.values())
        )
        return dict(zip(self._urls, states, strict=True))

    def _read(self, url: str) -> ProcessState:
        try:
            with self._opener.open(url, timeout=_TIMEOUT_S) as reply:
                return read_state(reply.read(_MAX_BYTES).decode())
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise UnavailableError(f"no metrics at {url}: {reason}") from None


def read_state(text: str) -> ProcessState:
    """Returns what an exposition says.

    Args:
        text: In Prometheus' text format.
    """
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    values = {
        field: sum(sums[name] for name in names)
        for field, names in _SERIES.items()
        if all(name in sums for name in names)
    }
    return ProcessState(**values)


def read_urls(text: str) -> dict[str, str]:
    """Reads `name=host:port` with commas.

    Raises:
        InvalidArgumentError: Something else.
    """
    urls: dict[str, str] = {}
    for part in text.split(","):
        name, _, address = part.strip().partition("=")
        if not name or ":" not in address or name in urls:
            raise InvalidArgumentError("--metrics", text, "distinct name=host:port with commas")
        urls[name] = f"http://{address}/metrics"
    return urls
