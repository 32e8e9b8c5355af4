"""KV and features of every session.

Nothing outside this file and the prefix cache, which copies them, knows how they lie in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from arborist.common.kv_layout import FeatureLayout, KvLayout
from arborist.core.engine import SessionKey
from arborist.core.errors import (
    ArboristError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnknownSessionError,
)
from arborist.target.kv_slab import Slab, SlabPool

RETRY_AFTER_MS = 200

FeatureRetention: TypeAlias = Literal["all", "off"] | int
"""Positions whose features are kept: all of them, none, or that many of the newest."""


class FeatureRing:
    """The newest features of a session; a position lies in row (position modulo rows)."""

    def __init__(self, rows: int, layout: FeatureLayout, device: torch.device) -> None:
        """Allocates everything.

        Args:
            rows: Positions kept.
            layout: What a position keeps.
            device: Where the rows lie.
        """
        self.layout = layout
        self._data = torch.empty((rows, layout.width), dtype=layout.dtype, device=device)  # [N, W]
        self._rows = rows

    def first_kept(self, length: int) -> int:
        """Returns the oldest position held once `length` positions were written."""
        return max(0, length - self._rows)

    def write(self, begin: int, features: Tensor) -> None:
        """Stores the rows of positions begin, begin + 1, ...; the oldest fall out.

        Args:
            begin: First position.
            features: (rows, width).
        """
        dropped = max(0, len(features) - self._rows)
        features = features[dropped:]
        slot = (begin + dropped) % self._rows
        head = min(len(features), self._rows - slot)
        self._data[slot : slot + head] = features[:head]
        if head < len(features):
            self._data[: len(features) - head] = features[head:]

    def read(self, begin: int, end: int) -> Tensor:
        """Returns a copy of the rows of positions [begin, end), shape (end − begin, width)."""
        slot = begin % self._rows
        head = min(end - begin, self._rows - slot)
        if head == end - begin:
            return self._data[slot : slot + head].clone()
        return torch.cat((self._data[slot:], self._data[: end - begin - head]))


class SessionKv:
    """KV and features of one session: slot i holds position i, slots past `length` are scratch.

    Attributes:
        capacity: Slots.
        length: Positions that hold committed tokens.
        features: Features of positions [0, length), as far as they are kept.
        used: Positions that were ever written.
        place: Slab and slot it lies in; None = its memory is its own.
        stacks: Planes of each shape (heads, width), each (planes, heads, capacity, width); for
            the prefix cache alone, which keeps its own in the same order.
    """

    def __init__(
        self,
        layout: KvLayout,
        capacity: int,
        features: FeatureRing | None,
        device: torch.device,
        dtype: torch.dtype,
        place: tuple[Slab, int] | None = None,
    ) -> None:
        """Allocates every slot, unless they lie in a slab.

        Planes of one shape are stacked, so that compaction moves all layers in one operation.

        Args:
            layout: What a slot holds.
            capacity: Slots.
            features: Where features go; None = nowhere.
            device: Where the buffers lie.
            dtype: Element type.
            place: Slab and slot to lie in.
        """
        self.capacity = capacity
        self.length = 0
        self.used = 0
        self.features = features
        self.place = place
        if place is not None:
            self.stacks = place[0].stacks(place[1])
        else:
            self.stacks = {
                (heads, width): torch.empty(
                    (planes, heads, capacity, width), dtype=dtype, device=device
                )
                for (heads, width), planes in Counter(layout.planes).items()
            }  # each [planes, heads, C, width]
        unused = {shape: iter(stack) for shape, stack in self.stacks.items()}
        planes = [next(unused[shape]) for shape in layout.planes]  # each [heads, C, width]
        self._keys, self._values = planes[0::2], planes[1::2]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes new rows of one layer behind the committed slots, without committing them.

        Args:
            layer: Index of the decoder layer.
            keys: (heads, rows, width).
            values: (heads, rows, width).
        Returns:
            Keys and values of the committed slots and the new rows, each
            (heads, length + rows, width); views, valid until the next compact or free.
        """
        begin, end = self.length, self.length + keys.shape[1]
        self.expect(keys.shape[1])
        all_keys, all_values = self._keys[layer][:, :end], self._values[layer][:, :end]
        all_keys[:, begin:] = keys
        all_values[:, begin:] = values
        return all_keys, all_values

    def expect(self, rows: int) -> None:
        """Notes that so many rows are written behind the committed slots, by whomever."""
        self.used = max(self.used, self.length + rows)

    def compact(self, kept: Sequence[int]) -> None:
        """Commits some of the rows written last and forgets the others.

        Args:
            kept: Indices among the new rows, ascending.
        """
        begin, end = self.length, self.length + len(kept)
        if kept and kept[-1] != len(kept) - 1:
            moved = next(i for i, row in enumerate(kept) if i != row)
            slots = torch.tensor([begin + row for row in kept[moved:]])
            for stack in self.stacks.values():
                # The right side is a copy, so sources and destinations may overlap.
                stack[:, :, begin + moved : end] = stack[:, :, slots.to(stack.device)]
        self.length = end

    def copy_prefix(self, source: SessionKv, length: int) -> None:
        """Takes over positions [0, length) of another session of the same pool."""
        for shape, stack in self.stacks.items():
            stack[:, :, :length] = source.stacks[shape][:, :, :length]
        self.used = max(self.used, length)
        if self.features is not None and source.features is not None:
            first = source.features.first_kept(source.length)
            if first < length:
                self.features.write(first, source.features.read(first, length))
        self.length = length


class KvPool:
    """KV of all sessions, counted in tokens."""

    def __init__(
        self,
        layout: KvLayout,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
        retention: FeatureRetention = "all",
    ) -> None:
        """Makes an empty pool.

        Args:
            layout: What a position holds.
            capacity: Positions of all sessions together, in tokens.
            device: Where buffers lie.
            dtype: Element type of keys and values.
            retention: Positions of each session whose features are kept.
        Raises:
            InvalidArgumentError: capacity or retention is out of range.
        """
        if capacity < 1:
            raise InvalidArgumentError("kv_capacity_tokens", capacity, "at least 1")
        if isinstance(retention, int) and retention < 1:
            raise InvalidArgumentError("feature_retention", retention, "all, off or at least 1")
        self._layout = layout
        self._device = device
        self._dtype = dtype
        self._retention = retention
        self.keeps_features = retention == "all"
        """Whether every committed position's features are kept."""
        self._sessions: dict[SessionKey, SessionKv] = {}
        # Elsewhere memory is taken when it is set aside, and capacity must mean what it says.
        self._slabs = SlabPool(layout.planes, dtype) if device.type == "cpu" else None
        self.capacity = capacity
        self.reserved = 0

    def reserve(self, session: SessionKey, tokens: int, features: FeatureLayout | None) -> None:
        """Sets memory aside for a session that holds none.

        Args:
            session: Whose it is.
            tokens: Positions, drafted nodes included.
            features: What a position keeps as features; None = nothing.
        Raises:
            ResourceExhaustedError: It does not fit.
            InvalidArgumentError: It would not fit an empty pool.
        """
        if tokens > self.capacity:
            raise InvalidArgumentError(
                "max_length",
                tokens,
                f"at most {self.capacity} KV positions, drafted nodes included",
            )
        if self.reserved + tokens > self.capacity:
            raise ResourceExhaustedError(
                f"KV is full: {tokens} tokens wanted, "
                f"{self.capacity - self.reserved} of {self.capacity} free",
                metadata={"field": "kv_capacity_tokens", "limit": str(self.capacity)},
                retry_after_ms=RETRY_AFTER_MS,
            )
        try:
            ring = self._ring(tokens, features)
            place = None if self._slabs is None else self._slabs.take(tokens)
            entry = SessionKv(self._layout, tokens, ring, self._device, self._dtype, place)
        except (MemoryError, RuntimeError) as error:
            # torch says "not enough memory" in a RuntimeError, on a GPU in a subclass of it.
            raise ResourceExhaustedError(
                f"no memory on {self._device} for the KV of {tokens} tokens",
                retry_after_ms=RETRY_AFTER_MS,
            ) from error
        self._sessions[session] = entry
        self.reserved += tokens

    def view(self, session: SessionKey) -> SessionKv:
        """Returns the memory of a session.

        Raises:
            UnknownSessionError: It holds none.
        """
        try:
            return self._sessions[session]
        except KeyError:
            raise UnknownSessionError(f"unknown session {session[1]}") from None

    def compact(self, session: SessionKey, kept: Sequence[int], features: Tensor | None) -> None:
        """Commits some of the rows a session wrote last, with their features.

        Args:
            session: Whose rows.
            kept: Indices among the new rows, ascending.
            features: (len(kept), width); None = none are kept.
        """
        entry = self.view(session)
        if entry.features is not None and features is not None:
            entry.features.write(entry.length, features)
        entry.compact(kept)

    def features(self, session: SessionKey, begin: int, end: int) -> Tensor:
        """Returns a copy of the features kept of positions [begin, end).

        Returns:
            (end − begin, width).
        Raises:
            UnknownSessionError: There is no such session.
            InvalidArgumentError: Some of them are not there (any more).
        """
        entry = self.view(session)
        if entry.features is None:
            raise InvalidArgumentError(
                "read_features", "off", "asked of a session that keeps features"
            )
        first = entry.features.first_kept(entry.length)
        if not first <= begin:
            raise InvalidArgumentError("begin", begin, f"at least {first}, the oldest kept")
        if not begin < end <= entry.length:
            raise InvalidArgumentError("end", end, f"in [{begin + 1}, {entry.length}]")
        return entry.features.read(begin, end)

    def share(self, source: SessionKey, target: SessionKey, length: int) -> None:
        """Gives an empty session the first positions of another one.

        Args:
            source: Session that holds at least `length` positions.
            target: Session with reserved, empty memory.
            length: Positions, in tokens.
        Raises:
            UnknownSessionError: One of them is unknown.
            InvalidArgumentError: `length` is more than one holds or the other can take.
        """
        giver, taker = self.view(source), self.view(target)
        limit = min(giver.length, taker.capacity)
        if taker.length or not 0 <= length <= limit:
            raise InvalidArgumentError("length", length, f"at most {limit}, into an empty session")
        taker.copy_prefix(giver, length)

    def free(self, session: SessionKey) -> None:
        """Gives the memory of a session back; unknown sessions are no error."""
        entry = self._sessions.pop(session, None)
        if entry is not None:
            self.reserved -= entry.capacity
            if self._slabs is not None and entry.place is not None:
                self._slabs.give_back(*entry.place, entry.used)

    def check_integrity(self) -> None:
        """Checks the accounts.

        Raises:
            ArboristError: They do not add up.
        """
        total = sum(entry.capacity for entry in self._sessions.values())
        if total != self.reserved or total > self.capacity:
            raise ArboristError(
                f"KV accounts are wrong: {total} tokens held, {self.reserved} reserved, "
                f"capacity {self.capacity}"
            )
        for (_, name), entry in self._sessions.items():
            if not 0 <= entry.length <= entry.capacity:
                raise ArboristError(
                    f"KV length of session {name} is {entry.length}, capacity {entry.capacity}"
                )

    def _ring(self, tokens: int, layout: FeatureLayout | None) -> FeatureRing | None:
        if layout is None or self._retention == "off":
            return None
        rows = tokens if self._retention == "all" else min(self._retention, tokens)
        return FeatureRing(rows, layout, self._device)
