"""Which worker a session goes to: the one that most likely knows how it begins, unless it is full.

Rendezvous hashing: every controller orders the workers alike without talking to the others, and a
worker that comes or goes moves the sessions of no other. The hash of a prompt changes while it is
shorter than what is hashed, as the first turns of a chat are; so the workers are also asked what
they know, and one that knows the prompt comes before the one that the hash names. With bounded
load, as in consistent hashing with bounded loads (arXiv 1608.01350), a prompt that everybody sends
does not drown one worker.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from arborist.core.prefix import Prefix, share_scope

PLACED_TOKENS = 256
"""Leading tokens of a prompt that decide its place."""

ASKED_TOKENS = 4096
"""Most tokens that workers are asked for."""

WORTHWHILE_TOKENS = 16
"""Fewer known tokens move no session."""

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
        prefix: What workers may be asked for.
    """

    key: str
    prefix: Prefix

    @classmethod
    def of(cls, tenant: str, prompt: Sequence[int]) -> Placement:
        """Returns the placement of a prompt of a tenant."""
        tokens = ",".join(str(token) for token in prompt[:PLACED_TOKENS])
        asked = tuple(prompt[:ASKED_TOKENS])
        return cls(share_scope(tenant, tokens), Prefix(share_scope(tenant), asked))

    def order(self, workers: Sequence[WorkerT], known: Sequence[int] = ()) -> list[WorkerT]:
        """Returns workers, best first.

        Those with room come first, by what they know and then by hash; the others by load. A
        worker that knows the prompt may go one session further over its share.

        Args:
            workers: To choose from.
            known: Leading tokens of the prompt that each knows; empty = nothing.
        """
        total = sum(worker.num_sessions for worker in workers) + 1
        share = LOAD_FACTOR * total / max(len(workers), 1)

        def rank(place: int) -> tuple[int, int, bytes]:
            worker = workers[place]
            tokens = known[place] if known and known[place] >= WORTHWHILE_TOKENS else 0
            full = worker.num_sessions + 1 > (math.ceil(share) if tokens else share)
            level = 1 + worker.num_sessions if full else 0
            return level, -tokens, self._score(worker.worker_id)

        return [workers[place] for place in sorted(range(len(workers)), key=rank)]

    def _score(self, worker_id: str) -> bytes:
        return hashlib.blake2b(f"{self.key}/{worker_id}".encode(), digest_size=16).digest()
