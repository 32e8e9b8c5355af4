"""Acceptance of a head as it is, measured by decoding; the decode loop is handed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from arborist.training.trained_head import TrainedHead


@dataclass(frozen=True)
class Acceptance:
    """What was decoded: ``tau`` is the mean over rounds of accepted tokens + 1."""

    tau: float
    num_rounds: int
    num_prompts: int
    elapsed_s: float


MeasureAcceptance: TypeAlias = Callable[[TrainedHead], Acceptance | None]
"""Decodes held-out prompts with the head as it is; None = there was no time for one round."""
