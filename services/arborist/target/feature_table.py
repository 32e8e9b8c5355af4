"""Features of the positions that a prefix cache keeps, of whatever kind."""

from __future__ import annotations

import torch
from torch import Tensor

from arborist.common.kv_layout import FeatureLayout

# Rows begin where any element type may.
_ROW_ALIGNMENT_BYTES = 8


class FeatureTable:
    """One row per slot, as wide as the widest kind so far.

    A slot belongs to one sequence and so to one kind: kinds share the table, and however many
    there are, a slot takes no more than the widest of them.
    """

    def __init__(self, num_slots: int, layout: FeatureLayout | None, device: torch.device) -> None:
        """Allocates the rows.

        Args:
            num_slots: Rows.
            layout: The kind that is expected; None = none is, the table begins without memory.
            device: Where they lie.
        """
        self._rows = _zeros(num_slots, 0 if layout is None else _row_bytes(layout), device)

    @property
    def nbytes(self) -> int:
        """Returns the memory that the table takes, in bytes."""
        return self._rows.nbytes

    def widen(self, layout: FeatureLayout) -> bool:
        """Makes rows wide enough for a kind; what they hold stays.

        Returns:
            Whether they are; False when there is no memory for it.
        """
        num_slots, width = self._rows.shape
        if _row_bytes(layout) <= width:
            return True
        try:
            rows = _zeros(num_slots, _row_bytes(layout), self._rows.device)
        except RuntimeError:  # "not enough memory"; on a GPU a subclass of it.
            return False
        rows[:, :width] = self._rows
        self._rows = rows
        return True

    def view(self, layout: FeatureLayout) -> Tensor:
        """Returns the rows as features of a kind that they are wide enough for, (slots, width)."""
        num_bytes = layout.width * layout.dtype.itemsize
        return self._rows[:, :num_bytes].view(layout.dtype)


def _row_bytes(layout: FeatureLayout) -> int:
    num_bytes = layout.width * layout.dtype.itemsize
    return -(-num_bytes // _ROW_ALIGNMENT_BYTES) * _ROW_ALIGNMENT_BYTES


def _zeros(num_slots: int, row_bytes: int, device: torch.device) -> Tensor:
    # Written to at once: memory that is only promised would be missing later.
    return torch.empty((num_slots, row_bytes), dtype=torch.uint8, device=device).fill_(0)
