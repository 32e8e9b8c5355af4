"""Which workers live: each one renews its entry, and one that falls silent leaves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["controller", "draft", "target"]


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """One process that can be reached.

    Attributes:
        role: What it is.
        address: Its gRPC address, host:port.
        model: Name of the model it holds; empty for a controller.
        digest: Digest of the model; empty for a controller.
        kv_capacity_tokens: KV positions in all; 0 for a controller.
        context_length: Longest sequence of the model, in tokens; 0 for a controller.
        metrics_port: Prometheus port; −1 = off.
    """

    role: Role
    address: str
    model: str = ""
    digest: str = ""
    kv_capacity_tokens: int = 0
    context_length: int = 0
    metrics_port: int = -1


@dataclass(frozen=True, slots=True)
class RegistrySnapshot:
    """What the registry knows at one moment.

    Attributes:
        age_s: Seconds since it began, empty; younger than a lease it may not know everybody yet.
        entries: Processes that renewed within the lease.
        failures: Role → why its newest process did not start.
    """

    age_s: float
    entries: tuple[RegistryEntry, ...]
    failures: dict[str, str]


class WorkerRegistry:
    """Entries with a lease. Knows nothing of Ray, which only hosts it."""

    def __init__(self, lease_s: float, now: Callable[[], float] = time.monotonic) -> None:
        """Begins empty.

        Args:
            lease_s: Seconds that an entry lives without being renewed.
            now: Seconds of a monotonic clock.
        """
        self._lease_s = lease_s
        self._now = now
        self._began_s = now()
        self._entries: dict[tuple[str, str], tuple[RegistryEntry, float]] = {}
        self._failures: dict[str, str] = {}

    def renew(self, entry: RegistryEntry) -> None:
        """Enters a process or extends its lease."""
        self._entries[entry.role, entry.address] = (entry, self._now())
        self._failures.pop(entry.role, None)

    def remove(self, role: Role, address: str) -> None:
        """Forgets a process that stops; an unknown one is no error."""
        self._entries.pop((role, address), None)

    def report_failure(self, role: Role, message: str) -> None:
        """Keeps why a process did not start, one line, until one of its role does."""
        self._failures[role] = message

    def snapshot(self) -> RegistrySnapshot:
        """Returns who lives now, in the order of entering."""
        now_s = self._now()
        for key, (_, renewed_s) in list(self._entries.items()):
            if now_s - renewed_s > self._lease_s:
                del self._entries[key]
        entries = tuple(entry for entry, _ in self._entries.values())
        return RegistrySnapshot(now_s - self._began_s, entries, dict(self._failures))
