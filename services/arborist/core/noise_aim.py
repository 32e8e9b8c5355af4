"""Noise-aware drafting: a draft that knows the target's noise aims at the token that will be drawn.

At position n the target draws argmax_v(l_v / T + g_v), with l its logits and g the noise of
(seed, n, v) (DESIGN §2). A draft that estimates l by its own logits l' knows g exactly, so what it
should rank children by is not how likely v is over all noise, but how likely v is under *this*
noise. If the errors l − l' are independent Gumbel variables of scale 1, the target's token is v
with probability softmax(l' + T·g)_v. At T = 0 that is EAGLE-2's own score, the softmax of the raw
logits: one rule for all temperatures, whose log-probs are <= 0 and add up along a path as ever.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from arborist.core.errors import InvalidArgumentError
from arborist.core.sampling import MAX_TEMPERATURE, MIN_TEMPERATURE, token_noise


@dataclass(frozen=True, slots=True)
class NoiseAim:
    """How a session's target draws, as far as its draft is told.

    Attributes:
        seed: Seed of the target's noise, 64 bits unsigned.
        temperature: The target's, in [1e-6, 100].
    """

    seed: int
    temperature: float

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 64:
            raise InvalidArgumentError("noise_seed", self.seed, "an unsigned 64-bit integer")
        # Comparisons with NaN are false.
        if not MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:
            limit = f"a number in [{MIN_TEMPERATURE:g}, {MAX_TEMPERATURE:g}]"
            raise InvalidArgumentError("noise_temperature", self.temperature, limit)

    def aimed(self, logits: Tensor, position: int, token_ids: Tensor) -> Tensor:
        """Returns logits whose softmax is the chance of every token to be drawn under the noise.

        Args:
            logits: float32, shape (rows, ids); the draft's raw logits at nodes of one depth.
            position: Absolute index of the token that is drawn after these nodes (the prompt
                starts at 0): the children's position, not the nodes' own.
            token_ids: int64, shape (ids,), same device; the target's id of every column.
        Returns:
            float32, shape (rows, ids).
        """
        noise = token_noise(self.seed, position, token_ids)  # [ids] float64
        return logits + (self.temperature * noise).to(logits.dtype)
