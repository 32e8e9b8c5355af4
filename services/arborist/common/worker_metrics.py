"""What a worker counts."""

from __future__ import annotations

from typing import Protocol

from arborist.core.prefix import PrefixCounts


class WorkerMetrics(Protocol):
    """Takes a worker's numbers, from its event loop only; never blocks and never raises."""

    def set_queued_rows(self, count: int) -> None:
        """Takes the number of commands waiting for or in a forward."""
        ...

    def set_sessions(self, count: int) -> None:
        """Takes the number of sessions open."""
        ...

    def set_kv_reserved_tokens(self, count: int) -> None:
        """Takes the number of KV positions reserved."""
        ...

    def observe_forward(self, kind: str, num_rows: int, num_tokens: int, seconds: float) -> None:
        """Takes one forward.

        Args:
            kind: Kind of its commands, or "mixed".
            num_rows: Commands in it.
            num_tokens: Tokens and nodes in it.
            seconds: Its duration.
        """
        ...

    def count_error(self, reason: str) -> None:
        """Takes one command that failed, by its reason in the error table."""
        ...

    def observe_prefix_cache(self, counts: PrefixCounts) -> None:
        """Takes what the prefix cache did since the worker's start."""
        ...


class NullWorkerMetrics:
    """Counts nothing."""

    def set_queued_rows(self, count: int) -> None:
        """Does nothing."""

    def set_sessions(self, count: int) -> None:
        """Does nothing."""

    def set_kv_reserved_tokens(self, count: int) -> None:
        """Does nothing."""

    def observe_forward(self, kind: str, num_rows: int, num_tokens: int, seconds: float) -> None:
        """Does nothing."""

    def count_error(self, reason: str) -> None:
        """Does nothing."""

    def observe_prefix_cache(self, counts: PrefixCounts) -> None:
        """Does nothing."""
