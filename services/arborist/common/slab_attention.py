"""Attention of many sessions in one operation, where their memory lies side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

# Sessions with more rows (prompts) fill the cores alone.
_MAX_ROWS = 64
# Work on padding, on other sessions' slots included, over the work that is wanted.
_MAX_WASTE = 3.0


class SharedSlab(Protocol):
    """Memory of several sessions; see `arborist.target.kv_slab.Slab`."""

    capacity: int

    def widths(self, layer: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Returns (heads, width) of a layer's keys and values."""
        ...

    def slot_rows(self, layer: int) -> int:
        """Returns how many rows, one per head and position, lie between two slots."""
        ...

    def extend(
        self, layer: int, rows: Tensor, keys: Tensor, values: Tensor, slots: slice, length: int
    ) -> tuple[Tensor, Tensor]:
        """Writes new rows and returns keys and values of some slots."""
        ...


class SlabSegment(Protocol):
    """A session's rows in a forward, as far as they matter here."""

    past: int
    rows: int

    @property
    def place(self) -> tuple[SharedSlab, int] | None:
        """Returns slab and slot; None = its memory is its own."""
        ...

    def seen(self) -> npt.NDArray[np.bool_]:
        """Returns what each row attends to, (rows, past + rows)."""
        ...


@dataclass(slots=True)
class SlabGroup:
    """Sessions of one slab that attend together.

    Attributes:
        members: Their places among the forward's segments.
    """

    members: list[int]
    _slab: SharedSlab
    _slots: slice
    _max_rows: int
    _length: int
    _packed_rows: Tensor | None  # [N], None = all rows of the forward, in order
    _padded_rows: Tensor  # [N]
    _row_slots: Tensor  # [N]
    _row_positions: Tensor  # [N]
    _seen: npt.NDArray[np.bool_]  # [slots, max_rows, length]
    _masks: dict[int, Tensor]
    _targets: dict[int, Tensor]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor | None:
        """Writes keys and values and returns what the rows attend to.

        Args:
            layer: Index of the decoder layer.
            query: (heads, rows of the forward, width).
            key: (kv_heads, rows of the forward, width).
            value: (kv_heads, rows of the forward, width).
            scale: Factor of the scores.
        Returns:
            (rows of the group, heads, width); None when keys and values differ in shape: nothing
            was written.
        """
        (kv_heads, width), value_shape = self._slab.widths(layer)
        if value_shape != (kv_heads, width):
            return None
        query, key, value = (self._own(one) for one in (query, key, value))  # [N, heads, width]
        keys, values = self._slab.extend(
            layer, self._written(layer, kv_heads), key, value, self._slots, self._length
        )
        heads, slots, rows = query.shape[1], keys.shape[0], self._max_rows
        groups = heads // kv_heads
        padded = query.new_zeros((slots * rows, heads, width))
        padded.index_copy_(0, self._padded_rows, query)
        folded = padded.view(slots, rows, kv_heads, groups, width).permute(0, 2, 3, 1, 4)
        out = F.scaled_dot_product_attention(
            folded.reshape(slots, kv_heads, groups * rows, width),
            keys,
            values,
            attn_mask=self._mask(groups, query),
            scale=scale,
        )
        out = out.view(slots, kv_heads, groups, rows, width).permute(0, 3, 1, 2, 4)
        return out.reshape(slots * rows, heads, width)[self._padded_rows]

    def rows_in_forward(self) -> Tensor | None:
        """Returns which rows of the forward these are; None = all of them, in order."""
        return self._packed_rows

    def _own(self, states: Tensor) -> Tensor:
        rows = states.transpose(0, 1)
        return rows if self._packed_rows is None else rows[self._packed_rows]

    def _written(self, layer: int, heads: int) -> Tensor:
        """Returns where each (row, head) goes in the slab, counted from its layer's plane."""
        slot_rows = self._slab.slot_rows(layer)
        if slot_rows not in self._targets:
            first = self._row_slots * slot_rows + self._row_positions  # [N]
            heads_apart = torch.arange(heads) * self._slab.capacity
            self._targets[slot_rows] = (first[:, None] + heads_apart).flatten()
        return self._targets[slot_rows]

    def _mask(self, groups: int, like: Tensor) -> Tensor:
        if groups not in self._masks:
            bias = np.where(self._seen, np.float32(0), np.float32(-np.inf))
            mask = torch.from_numpy(np.tile(bias, (1, groups, 1)))[:, None]  # [S, 1, g·R, L]
            self._masks[groups] = mask.to(like.dtype)
        return self._masks[groups]


def slab_groups(segments: Sequence[SlabSegment]) -> list[SlabGroup]:
    """Returns the sessions of a forward that are to attend together.

    Args:
        segments: Rows of every session, in packed order.
    Returns:
        Groups of at least two; who is in none attends alone.
    """
    starts = np.cumsum([0, *(one.rows for one in segments)])
    by_slab: dict[int, list[tuple[int, SharedSlab, int]]] = {}
    for index, segment in enumerate(segments):
        place = segment.place if segment.rows <= _MAX_ROWS else None
        if place is not None:
            slab, slot = place
            by_slab.setdefault(id(slab), []).append((index, slab, slot))
    groups = []
    for found in by_slab.values():
        group = _group(segments, starts, found) if len(found) > 1 else None
        if group is not None:
            groups.append(group)
    return groups


def _group(
    segments: Sequence[SlabSegment],
    starts: npt.NDArray[np.int64],
    found: list[tuple[int, SharedSlab, int]],
) -> SlabGroup | None:
    members = [index for index, _, _ in found]
    slots = [slot for _, _, slot in found]
    low, high = min(slots), max(slots) + 1
    rows = max(segments[index].rows for index in members)
    length = max(segments[index].past + segments[index].rows for index in members)
    wanted = sum(
        segments[index].rows * (segments[index].past + segments[index].rows) for index in members
    )
    if (high - low) * rows * length > _MAX_WASTE * wanted:
        return None
    seen = np.zeros((high - low, rows, length), dtype=np.bool_)
    seen[:, :, 0] = True  # Rows nobody asks for must see something: a softmax of nothing is NaN.
    padded, own_slots, positions, packed = [], [], [], []
    for index, slot in zip(members, slots, strict=True):
        one = segments[index]
        seen[slot - low, : one.rows, : one.past + one.rows] = one.seen()
        count = range(one.rows)
        padded += [(slot - low) * rows + row for row in count]
        own_slots += [slot] * one.rows
        positions += [one.past + row for row in count]
        packed += [int(starts[index]) + row for row in count]
    whole = len(packed) == starts[-1]
    return SlabGroup(
        members,
        found[0][1],
        slice(low, high),
        rows,
        length,
        None if whole else torch.tensor(packed),
        torch.tensor(padded),
        torch.tensor(own_slots),
        torch.tensor(positions),
        seen,
        {},
        {},
    )
