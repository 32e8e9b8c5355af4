"""What the worker shell asks of an engine, target or draft alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

from arborist.core.engine import ModelInfo, SessionKey
from arborist.core.prefix import Prefix, PrefixCounts

OpenT_contra = TypeVar("OpenT_contra", contravariant=True)
WorkT_contra = TypeVar("WorkT_contra", contravariant=True)


class WorkerEngine(Protocol[OpenT_contra, WorkT_contra]):
    """The part that `core.engine.TargetEngine` and `DraftEngine` share."""

    @property
    def info(self) -> ModelInfo:
        """Returns what is loaded."""
        ...

    @property
    def kv_capacity_tokens(self) -> int:
        """Returns all KV positions."""
        ...

    @property
    def kv_reserved_tokens(self) -> int:
        """Returns KV positions reserved by sessions."""
        ...

    def open(self, session: SessionKey, request: OpenT_contra) -> int:
        """Reserves KV and returns the positions reserved."""
        ...

    def run(self, batch: Sequence[WorkT_contra]) -> Sequence[object]:
        """Runs one forward and returns one outcome per item, in order.

        Raises:
            Exception: Nothing was committed yet: items may run again, one by one.
        """
        ...

    def release(self, session: SessionKey) -> None:
        """Frees everything of the session."""
        ...


@runtime_checkable
class RunsAhead(Protocol):
    """An engine that can use idle time for what it will most likely be asked for next."""

    def run_ahead(self) -> Sequence[SessionKey]:
        """Computes ahead of commands; changes no answer and does not raise.

        Returns:
            The sessions it was done for: their next command may be answered at once.
        """
        ...


@runtime_checkable
class KeepsPrefixes(Protocol):
    """An engine whose sessions leave what they have committed to those that begin alike."""

    def num_reused(self, session: SessionKey) -> int:
        """Returns the KV positions that a session took over when it was opened."""
        ...

    def keep(self, session: SessionKey) -> None:
        """Leaves what a session has committed to later ones; its release comes next."""
        ...

    @property
    def prefix_counts(self) -> PrefixCounts:
        """Returns what was asked for, taken over, and is held now."""
        ...


@runtime_checkable
class FindsPrefixes(Protocol):
    """An engine that can be asked, from any thread, what it knows of a session's beginning."""

    def known_length(self, prefix: Prefix) -> int:
        """Returns how many leading tokens an Open would most likely take over."""
        ...
