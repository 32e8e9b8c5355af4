"""Rotary position embedding of a head, with precomputed angles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Frequencies as Llama 3.1 scales them ("llama3" rope scaling).

    Attributes:
        factor: Low frequencies are divided by this.
        low_freq_factor: Wavelengths above original / low_freq_factor count as low.
        high_freq_factor: Wavelengths below original / high_freq_factor stay as they are.
        original_max_position_embeddings: Context before scaling, in tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def scale(self, frequencies: Tensor) -> Tensor:
        """Returns scaled frequencies, same shape; between the two bounds they are blended."""
        original = self.original_max_position_embeddings
        wavelengths = 2 * math.pi / frequencies
        low, high = self.low_freq_factor, self.high_freq_factor
        share = (original / wavelengths - low) / (high - low)
        blended = (1 - share) * frequencies / self.factor + share * frequencies
        scaled = torch.where(wavelengths > original / low, frequencies / self.factor, blended)
        return torch.where(wavelengths < original / high, frequencies, scaled)


class Rotary(nn.Module):
    """Rotary position embedding with precomputed angles, in the half-split layout of Llama."""

    table: Tensor

    def __init__(
        self,
        head_dim: int,
        theta: float,
        num_positions: int,
        *,
        linear_factor: float = 1.0,
        llama3: Llama3Scaling | None = None,
    ) -> None:
        """Computes the angles of the positions the head was trained for.

        Args:
            head_dim: Width of one attention head, even.
            theta: Base of the frequencies.
            num_positions: Positions covered at first.
            linear_factor: Positions are divided by this.
            llama3: Scaling of the frequencies; None = none.
        """
        super().__init__()
        self._head_dim = head_dim
        self._theta = theta
        self._linear_factor = linear_factor
        self._llama3 = llama3
        # Not part of the state dict: official files have no such tensor.
        self.register_buffer("table", self._angles(num_positions), persistent=False)

    @property
    def num_positions(self) -> int:
        """Returns how many positions the table covers."""
        return self.table.shape[0]

    def reserve(self, num_positions: int) -> None:
        """Makes the table cover [0, num_positions); never shrinks it."""
        if num_positions > self.num_positions:
            self.table = self._angles(num_positions).to(self.table)

    def _angles(self, num_positions: int) -> Tensor:
        half = torch.arange(0, self._head_dim, 2, dtype=torch.int64).float() / self._head_dim
        frequencies = 1.0 / self._theta**half  # [hd / 2]
        if self._llama3 is not None:
            frequencies = self._llama3.scale(frequencies)
        positions = torch.arange(num_positions, dtype=torch.float32) / self._linear_factor
        angles = torch.outer(positions, frequencies)  # [P, hd / 2]
        cos, sin = angles.cos(), angles.sin()
        # The minus of the rotation sits in the table, so applying it is one fused multiply-add.
        rows = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), 1)
        return rows.unsqueeze(2)  # [P, 2, 1, hd]

    def forward(self, positions: Tensor) -> Tensor:
        """Returns the rows of the table, shape (R, 2, 1, head_dim); positions int64 (R,)."""
        return self.table.index_select(0, positions)


def rotate(states: Tensor, angles: Tensor) -> Tensor:
    """Applies RoPE.

    Args:
        states: (R, heads, head_dim).
        angles: Rows of `Rotary`, (R, 2, 1, head_dim).
    Returns:
        (R, heads, head_dim).
    """
    swapped = states.roll(states.shape[-1] // 2, -1)
    return torch.addcmul(states * angles[:, 0], swapped, angles[:, 1])
