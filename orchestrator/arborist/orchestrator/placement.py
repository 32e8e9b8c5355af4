"""Which worker a session goes to: the one that most likely knows how it begins, unless it is full.

Rendezvous hashing: every controller orders the workers alike without talking to the others, and a
worker that comes or goes moves the sessions of no other. With bounded load, as in consistent
hashing with bounded loads (arXiv 1608.01350), a prompt that everybody sends does not drown one
worker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from arborist.core.prefix import share_scope

PLACED_TOKENS = 256
"""Leading tokens of a prompt that decide its place."""

LOAD_FACTOR = 1.25
"""A worker that would get more sessions than this times the mean is passed over."""


class Placeable(Protocol):
    """A worker that sessions can be placed on."""

    @property
    def worker_id(self) -> str:
        """Returns its identity, the same for every controller."""
        ...

    @property
    def num_sessions(self) -> int:
        """Returns its sessions, as far as this controller knows."""
        ...


WorkerT = TypeVar("WorkerT", bound=Placeable)


@dataclass(frozen=True, slots=True)
class Placement:
    """What decides where a session goes.

    Attributes:
        key: Stands for tenant and beginning of the prompt.
    """

    key: str

    @classmethod
    def of(cls, tenant: str, prompt: Sequence[int]) -> Placement:
        """Returns the placement of a prompt of a tenant."""
        tokens = ",".join(str(token) for token in prompt[:PLACED_TOKENS])
        return cls(share_scope(tenant, tokens))

    def order(self, workers: Sequence[WorkerT]) -> list[WorkerT]:
        """Returns workers, best first: those with room by hash, then the others by load."""
        total = sum(worker.num_sessions for worker in workers) + 1

        def rank(worker: WorkerT) -> tuple[int, bytes]:
            num_sessions = worker.num_sessions
            # No room means: more than its share once this session is there.
            full = (num_sessions + 1) * len(workers) > LOAD_FACTOR * total
            return (1 + num_sessions if full else 0), self._score(worker.worker_id)

        return sorted(workers, key=rank)

    def _score(self, worker_id: str) -> bytes:
        return hashlib.blake2b(f"{self.key}/{worker_id}".encode(), digest_size=16).digest()
