"""Who attaches to a worker, and on which lane."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

PROTOCOL_VERSION = 1
"""Version of the stream protocol spoken here."""


class StreamLane(Enum):
    """What a stream carries; both lanes of a controller share its sessions."""

    ROUND = "round"
    BULK = "bulk"


@dataclass(frozen=True, slots=True)
class Attach:
    """First message of a stream.

    Attributes:
        controller_id: Scope of the session ids, 1..64 characters.
        lane: What the stream carries.
        target_digest: Target model expected; empty = any.
        draft_digest: Draft model expected; empty = any.
        protocol_version: Version the controller speaks.
    """

    controller_id: str
    lane: StreamLane
    target_digest: str = ""
    draft_digest: str = ""
    protocol_version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class Attached:
    """Answer to Attach.

    Attributes:
        worker_id: Identity of the worker process; another id means its sessions are gone.
        protocol_version: Version the worker speaks.
    """

    worker_id: str
    protocol_version: int = PROTOCOL_VERSION
