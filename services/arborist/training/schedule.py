"""Learning-rate schedule: warm up, hold, fall linearly."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Factor on the peak learning rate by step.

    A run may be resumed with another ``num_steps`` while it holds: the factor is 1 there anyway.
    """

    num_steps: int
    warmup_steps: int = 20
    decay_share: float = 0.5

    def factor(self, step: int) -> float:
        """Factor in (0, 1] for the update made at ``step`` (from 0)."""
        rise = (step + 1) / max(1, self.warmup_steps)
        fall = (self.num_steps - step) / max(1.0, self.decay_share * self.num_steps)
        return max(0.0, min(1.0, rise, fall))
