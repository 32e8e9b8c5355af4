"""Forwards of chosen sizes before a draft serves, to know what rows cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from arborist.common.busy_clock import BusyClock
from arborist.core.engine import DraftEngine, DraftOpen, DraftWork, Expand, Extend, SessionKey
from arborist.core.errors import ArboristError, ResourceExhaustedError

_ROWS_PER_SESSION = 8
_LENGTH = 4


class RehearsedDraft(DraftEngine, Protocol):
    """A draft engine that says how wide a level may be."""

    @property
    def num_draft_ids(self) -> int:
        """Returns the token ids that can be drafted."""
        ...


def rehearse(engine: RehearsedDraft, rows: int, clock: BusyClock) -> float | None:
    """Expands `rows` nodes, up to eight of a session, in sessions of its own.

    Args:
        engine: The engine; nothing of the sessions is left in it.
        rows: Rows of the forward.
        clock: Times it.
    Returns:
        Milliseconds of the forward; None when so many rows do not fit.
    Raises:
        ArboristError: It did not work.
    """
    width = min(_ROWS_PER_SESSION, rows, engine.num_draft_ids)
    sessions: list[SessionKey] = [
        ("arborist", f"rehearsal-{number}") for number in range(-(-rows // width))
    ]
    widths = [min(width, rows - number * width) for number in range(len(sessions))]
    try:
        for session in sessions:
            engine.open(session, DraftOpen(_LENGTH))
        _run(engine, [_extend(engine, session, width) for session in sessions])
        start_ns = clock()
        _run(
            engine,
            [
                Expand(session, list(range(count)), 1)
                for session, count in zip(sessions, widths, strict=True)
            ],
        )
        return (clock() - start_ns) / 1e6
    except ResourceExhaustedError:
        return None
    finally:
        for session in sessions:
            engine.release(session)


def _extend(engine: DraftEngine, session: SessionKey, top_k: int) -> Extend:
    features = None
    if engine.feature_spec is not None:
        features = torch.zeros((1, engine.feature_width), dtype=torch.float32)
    return Extend(session, 0, [0], features, top_k)


def _run(engine: DraftEngine, batch: Sequence[DraftWork]) -> None:
    for outcome in engine.run(batch):
        if isinstance(outcome, ArboristError):
            raise outcome
