"""Commands and replies of a worker's stream, in our own types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from arborist.core.engine import SessionKey
from arborist.core.stamp import Stamp
from arborist.core.tensor import RawTensor

OpenT = TypeVar("OpenT")
WorkT = TypeVar("WorkT")
OutcomeT = TypeVar("OutcomeT")


@dataclass(frozen=True, slots=True)
class OpenSession(Generic[OpenT]):
    """Opens a session, or replaces its older incarnation.

    Attributes:
        epoch: Incarnation, from 1.
        request: What the engine reserves.
    """

    epoch: int
    request: OpenT


@dataclass(frozen=True, slots=True)
class RunWork(Generic[WorkT]):
    """Something for the next forward.

    Attributes:
        stamp: Order inside the session.
        work: What the engine runs.
        num_tokens: Tokens or nodes it adds to the forward.
        kind: Name of the command, as in span names ("prefill", "verify", "extend", "expand").
        bulk: Whether it belongs to a prompt; otherwise to a round.
        follows: Whether it goes on from the command stamped one step before, with which it is in
            flight as one pair.
        level_traceparents: Parents of the spans of what it computes level by level.
    """

    stamp: Stamp
    work: WorkT
    num_tokens: int
    kind: str
    bulk: bool
    follows: bool = False
    level_traceparents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadRows:
    """Reads stored features of positions [begin, end)."""

    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class ReleaseSession:
    """Frees a session; an unknown one is no error."""


@dataclass(frozen=True, slots=True)
class Command(Generic[OpenT, WorkT]):
    """One command as a worker sees it.

    Attributes:
        command_id: Chosen by the controller; echoed.
        session: (controller_id, session_id).
        traceparent: W3C trace context of the caller's span; empty = not traced.
        body: What to do.
    """

    command_id: int
    session: SessionKey
    traceparent: str
    body: OpenSession[OpenT] | RunWork[WorkT] | ReadRows | ReleaseSession


@dataclass(frozen=True, slots=True)
class Opened:
    """Answer to Open.

    Attributes:
        reserved_tokens: KV positions reserved, in tokens.
        num_reused: Leading KV positions taken over from earlier sessions.
    """

    reserved_tokens: int
    num_reused: int = 0


@dataclass(frozen=True, slots=True)
class Released:
    """Answer to Release: nothing of the session is left."""


@dataclass(frozen=True, slots=True)
class FeaturesRead:
    """Answer to ReadFeatures, or one part of it.

    Attributes:
        begin: Position of the first row.
        features: (rows, width).
    """

    begin: int
    features: RawTensor


@dataclass(frozen=True, slots=True)
class Reply(Generic[OutcomeT]):
    """One result as a controller sees it.

    Attributes:
        command_id: Echo of the command.
        queue_ms: Milliseconds the command waited for a forward.
        compute_ms: Milliseconds of the forward it was part of.
        outcome: The answer, or an `ArboristError`.
        more: Whether further parts of this answer follow.
    """

    command_id: int
    queue_ms: float
    compute_ms: float
    outcome: OutcomeT
    more: bool = False
