"""KV of all sessions: one preallocated buffer, cut into a contiguous region per session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from arborist.core.errors import InvalidArgumentError, ResourceExhaustedError

RETRY_AFTER_MS = 200


class KvShape(Protocol):
    """What one position holds, the same in every layer."""

    @property
    def num_layers(self) -> int:
        """Returns the decoder layers."""
        ...

    @property
    def num_key_value_heads(self) -> int:
        """Returns the key and value heads of a layer."""
        ...

    @property
    def head_dim(self) -> int:
        """Returns the width of one head."""
        ...


@dataclass(eq=False, slots=True)
class KvRegion:
    """Slots [begin, begin + length) of the pool; `begin` moves when the pool is compacted."""

    begin: int
    length: int


class KvPool:
    """Keys and values by layer and slot; hands out regions, counts tokens.

    A slot holds one position of one session in every layer. Regions are contiguous, so that
    attention reads a view and never gathers; when only the gaps between regions are large enough
    together, the regions are moved down.
    """

    def __init__(
        self, config: KvShape, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Allocates everything.

        Args:
            config: Gives layers, KV heads and head width.
            capacity: Slots of all sessions together.
            device: Where the buffer lies.
            dtype: Element type.
        """
        if capacity < 1:
            raise InvalidArgumentError("kv_capacity_tokens", capacity, "at least 1")
        shape = (
            config.num_layers,
            2,
            capacity,
            config.num_key_value_heads,
            config.head_dim,
        )
        # Written to at once: memory that is only promised would be missing later, and the process
        # would grow whenever more sessions than ever before are open.
        buffer = torch.empty(shape, dtype=dtype, device=device).fill_(0)
        self._buffer = buffer  # [L, 2, C, kv_heads, hd]
        self._regions: list[KvRegion] = []  # by begin
        self.capacity = capacity
        self.reserved = 0

    def reserve(self, length: int) -> KvRegion:
        """Hands out a region.

        Args:
            length: Slots, at least 1.
        Raises:
            InvalidArgumentError: It would not fit into an empty pool.
            ResourceExhaustedError: It does not fit now.
        """
        if length > self.capacity:
            raise InvalidArgumentError(
                "session tokens", length, f"at most the KV capacity of {self.capacity} tokens"
            )
        if length > self.capacity - self.reserved:
            raise ResourceExhaustedError(
                f"draft KV is full: {self.reserved} of {self.capacity} tokens are reserved, "
                f"{length} are wanted",
                retry_after_ms=RETRY_AFTER_MS,
            )
        begin = self._first_fit(length)
        if begin is None:
            self._compact()
            begin = self.reserved
        region = KvRegion(begin, length)
        self._regions.append(region)
        self._regions.sort(key=lambda other: other.begin)
        self.reserved += length
        return region

    def free(self, region: KvRegion) -> None:
        """Takes a region back."""
        self._regions.remove(region)
        self.reserved -= region.length

    def write(
        self, layer_index: int, region: KvRegion, begin: int, key: Tensor, value: Tensor
    ) -> None:
        """Stores rows from slot `begin` of the region on; key, value (R, kv_heads, hd)."""
        first = region.begin + begin
        last = first + key.shape[0]
        self._buffer[layer_index, 0, first:last] = key
        self._buffer[layer_index, 1, first:last] = value

    def view(self, layer_index: int, region: KvRegion, length: int) -> tuple[Tensor, Tensor]:
        """Returns keys and values of the region's first slots, each (length, kv_heads, hd)."""
        last = region.begin + length
        layer = self._buffer[layer_index]
        return layer[0, region.begin : last], layer[1, region.begin : last]

    def rows(self, region: KvRegion, begin: int, end: int) -> Tensor:
        """Returns a view of slots [begin, end) of a region, (layers, 2, end − begin, heads, hd).

        It is valid until the next `reserve`.
        """
        return self._buffer[:, :, region.begin + begin : region.begin + end]

    def buffer_of(self, capacity: int) -> Tensor:
        """Returns zeros for so many slots, (layers, 2, capacity, kv_heads, hd)."""
        shape = (*self._buffer.shape[:2], capacity, *self._buffer.shape[3:])
        # Written to at once: memory that is only promised would be missing later.
        return torch.empty(shape, dtype=self._buffer.dtype, device=self._buffer.device).fill_(0)

    def check_integrity(self) -> None:
        """Checks that regions lie inside the pool, do not overlap, and add up.

        Raises:
            RuntimeError: They do not.
        """
        end = 0
        for region in self._regions:
            if region.begin < end or region.begin + region.length > self.capacity:
                raise RuntimeError(f"draft KV region {region} overlaps another or the pool's end")
            end = region.begin + region.length
        total = sum(region.length for region in self._regions)
        if total != self.reserved:
            raise RuntimeError(f"draft KV counts {self.reserved} tokens, regions hold {total}")

    def _first_fit(self, length: int) -> int | None:
        end = 0
        for region in self._regions:
            if region.begin - end >= length:
                return end
            end = region.begin + region.length
        return end if self.capacity - end >= length else None

    def _compact(self) -> None:
        end = 0
        for region in self._regions:
            if region.begin != end:
                moved = self._buffer[:, :, region.begin : region.begin + region.length].clone()
                self._buffer[:, :, end : end + region.length] = moved
                region.begin = end
            end += region.length
