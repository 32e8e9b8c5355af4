"""Memory of several sessions side by side, so that one operation reaches all of them.

On a CPU every operation has a price of its own, and one that two threads share ends with the slower
thread; with memory per session there is one for every session in every layer. Pages are taken from
the system when they are first written and go back to it when fewer sessions are left, so slots that
nobody uses cost little; what a session writes lies close together, because pages may be large.
"""

from __future__ import annotations

import itertools
import math
import mmap
from collections import Counter

import torch
from torch import Tensor

Shape = tuple[int, int]

_MIN_SLOT_TOKENS = 256
_MAX_SLOTS = 32
_MAX_SLAB_BYTES = 1 << 30


class Slab:
    """Slots of one size; a slot holds all planes of one session.

    Attributes:
        capacity: Positions of a slot.
    """

    def __init__(self, planes: tuple[Shape, ...], capacity: int, dtype: torch.dtype) -> None:
        """Sets memory aside; it reads as zeros.

        Args:
            planes: (heads, width) of every plane, keys and values of layer 0 first.
            capacity: Positions of a slot.
            dtype: Element type.
        Raises:
            MemoryError: There is not so much.
        """
        slot_bytes = sum(heads * width for heads, width in planes) * capacity * dtype.itemsize
        self.num_slots = max(1, min(_MAX_SLOTS, _MAX_SLAB_BYTES // max(slot_bytes, 1)))
        self.capacity = capacity
        shapes = {
            shape: (self.num_slots, count, shape[0], capacity, shape[1])
            for shape, count in Counter(planes).items()
        }
        self._pages = {
            shape: _pages(math.prod(full) * dtype.itemsize) for shape, full in shapes.items()
        }
        self._stacks = {
            shape: torch.frombuffer(self._pages[shape], dtype=dtype, count=math.prod(full)).view(
                full
            )
            for shape, full in shapes.items()
        }  # each [S, planes, heads, C, width]
        numbers = {shape: itertools.count() for shape in self._stacks}
        ordered = [(shape, next(numbers[shape])) for shape in planes]
        self._keys, self._values = ordered[0::2], ordered[1::2]
        self._free = list(range(self.num_slots - 1, -1, -1))
        self._warm: set[int] = set()  # Free slots that have their pages still.

    @property
    def full(self) -> bool:
        """Returns whether every slot is taken."""
        return not self._free

    @property
    def empty(self) -> bool:
        """Returns whether no slot is taken."""
        return len(self._free) == self.num_slots

    def take(self) -> int:
        """Takes the lowest free slot."""
        slot = self._free.pop()
        self._warm.discard(slot)
        return slot

    def give_back(self, slot: int, used: int) -> None:
        """Frees a slot and clears what was written, so that nobody meets another's NaN.

        As many free slots as taken ones keep their pages for the sessions to come, which need not
        wait for the system then; one that stays does not hold what all others had beside it.

        Args:
            slot: Which.
            used: Positions that were written.
        """
        for stack in self._stacks.values():
            stack[slot, :, :, :used] = 0
        self._warm.add(slot)
        self._free.append(slot)
        self._free.sort(reverse=True)
        while len(self._warm) > self.num_slots - len(self._free):
            self._cool(max(self._warm))

    def _cool(self, slot: int) -> None:
        """Gives a free slot's pages back to the system, which gives cleared ones when needed."""
        self._warm.remove(slot)
        for shape, stack in self._stacks.items():
            num_bytes = stack[slot].nbytes
            if num_bytes % mmap.PAGESIZE == 0:  # Else it shares a page with its neighbour.
                self._pages[shape].madvise(mmap.MADV_DONTNEED, slot * num_bytes, num_bytes)

    def stacks(self, slot: int) -> dict[Shape, Tensor]:
        """Returns the planes of one slot by shape, each (planes, heads, capacity, width); views."""
        return {shape: stack[slot] for shape, stack in self._stacks.items()}

    def widths(self, layer: int) -> tuple[Shape, Shape]:
        """Returns (heads, width) of a layer's keys and of its values."""
        return self._keys[layer][0], self._values[layer][0]

    def slot_rows(self, layer: int) -> int:
        """Returns how many rows, one per head and position, lie between two slots."""
        _, planes, heads, capacity, _ = self._stacks[self._keys[layer][0]].shape
        return planes * heads * capacity

    def extend(
        self, layer: int, rows: Tensor, keys: Tensor, values: Tensor, slots: slice, length: int
    ) -> tuple[Tensor, Tensor]:
        """Writes new rows of several sessions and returns what their slots hold.

        Args:
            layer: Index of the decoder layer.
            rows: Where each (row, head) goes, (N·heads,): slot · slot_rows + head · capacity +
                position.
            keys: (N, heads, width).
            values: (N, heads, width), heads as the keys'.
            slots: Which to return.
            length: Positions to return.
        Returns:
            Keys and values, each (slots, heads, length, width); views.
        """
        held = []
        for (shape, plane), states in ((self._keys[layer], keys), (self._values[layer], values)):
            (heads, width), stack = shape, self._stacks[shape]
            lines = stack.view(-1, width)[plane * heads * self.capacity :]
            lines.index_copy_(0, rows, states.reshape(-1, width))
            held.append(stack[slots, plane, :, :length])
        return held[0], held[1]


class SlabPool:
    """Slabs of a few sizes."""

    def __init__(self, planes: tuple[Shape, ...], dtype: torch.dtype) -> None:
        """Begins empty.

        Args:
            planes: (heads, width) of every plane.
            dtype: Element type.
        """
        self._planes = planes
        self._dtype = dtype
        self._slabs: dict[int, list[Slab]] = {}

    def take(self, tokens: int) -> tuple[Slab, int]:
        """Returns a slab and the slot in it for a session of so many positions.

        Raises:
            MemoryError: There is no memory for another slab.
        """
        capacity = max(_MIN_SLOT_TOKENS, 1 << math.ceil(math.log2(tokens)))
        slabs = self._slabs.setdefault(capacity, [])
        slab = next((one for one in slabs if not one.full), None)
        if slab is None:
            slab = Slab(self._planes, capacity, self._dtype)
            slabs.append(slab)
        return slab, slab.take()

    def give_back(self, slab: Slab, slot: int, used: int) -> None:
        """Frees a slot, and its slab's memory with the last one.

        Args:
            slab: From `take`.
            slot: From `take`.
            used: Positions that were written.
        """
        slab.give_back(slot, used)
        if slab.empty:
            self._slabs[slab.capacity].remove(slab)


def _pages(num_bytes: int) -> mmap.mmap:
    # Cleared pages, taken from the system as they are touched, and small ones: torch would write
    # them all, numpy ask for huge ones, of which a session fills little.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        return mmap.mmap(-1, max(num_bytes, 1), flags=flags)
    except OSError as error:
        raise MemoryError(f"no memory for a slab: {error.strerror}") from None
