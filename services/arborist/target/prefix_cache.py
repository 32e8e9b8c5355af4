"""KV and features of sessions that have ended, for those that begin alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from arborist.common.kv_layout import FeatureLayout, KvLayout
from arborist.core.errors import InvalidArgumentError
from arborist.core.features import FeatureSpec
from arborist.core.prefix import Prefix, PrefixCounts
from arborist.core.prefix_tree import PrefixTree
from arborist.target.feature_table import FeatureTable
from arborist.target.kv import SessionKv

# Kinds of features that are kept; a look-up asks for each, sessions with another are not kept.
_MAX_KINDS = 4


class PrefixCache:
    """Copies of committed positions, a slot each, allocated once and beside the KV of sessions.

    A session copies what it takes over, so nothing here is ever in use, and whatever is dropped
    is dropped without asking.
    """

    def __init__(
        self,
        layout: KvLayout,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
        features: FeatureLayout | None = None,
    ) -> None:
        """Allocates the keys, values and features of every slot.

        Args:
            layout: What a position holds.
            capacity: Positions, in tokens.
            device: Where they lie.
            dtype: Element type of keys and values.
            features: What a position most likely keeps as features, whatever drafts may come;
                None = nothing.
        Raises:
            InvalidArgumentError: capacity is below 1.
        """
        if capacity < 1:
            raise InvalidArgumentError("prefix_cache_tokens", capacity, "at least 1")
        self._tree = PrefixTree(capacity)
        self._device = device
        # Written to at once: memory that is only promised would be missing later.
        self._stacks = {
            (heads, width): torch.empty(
                (planes, heads, capacity, width), dtype=dtype, device=device
            ).fill_(0)
            for (heads, width), planes in Counter(layout.planes).items()
        }  # each [planes, heads, N, width]
        self._features = FeatureTable(capacity, features, device)
        # What sessions kept, newest last; a dict for its order, which other threads may copy.
        self._specs: dict[FeatureSpec | None, None] = {}
        self._num_queried = 0
        self._num_hits = 0

    @property
    def counts(self) -> PrefixCounts:
        """Returns what the cache did so far."""
        num_bytes = self._features.nbytes + sum(one.nbytes for one in self._stacks.values())
        return PrefixCounts(self._num_queried, self._num_hits, self._tree.num_tokens, num_bytes)

    def length(self, prefix: Prefix) -> int:
        """Returns how many leading tokens are known with any features; from any thread."""
        specs = list(self._specs)
        return max(
            (self._tree.length((prefix.scope, spec), prefix.tokens) for spec in specs), default=0
        )

    def take_over(self, prefix: Prefix, spec: FeatureSpec | None, entry: SessionKv) -> int:
        """Copies the longest known beginning into an empty session.

        Args:
            prefix: What the session begins with.
            spec: Features it keeps; None = none.
            entry: Its memory, with room for the prefix.
        Returns:
            Positions copied, in tokens.
        """
        self._num_queried += len(prefix.tokens)
        if spec is not None and entry.features is None:
            return 0
        if entry.features is not None and not self._features.widen(entry.features.layout):
            return 0  # Now rather than when it ends: memory is best missed early.
        slots = self._tree.match((prefix.scope, spec), prefix.tokens)
        length = len(slots)
        if not length:
            return 0
        try:
            places = torch.from_numpy(slots).to(self._device)
            entry.expect(length)
            for shape, stack in self._stacks.items():
                entry.stacks[shape][:, :, :length] = stack[:, :, places]
            if entry.features is not None:
                entry.features.write(0, self._features.view(entry.features.layout)[places])
        except torch.OutOfMemoryError:
            return 0  # The session then computes it itself.
        entry.length = length
        self._num_hits += length
        return length

    def keep(
        self, scope: str, spec: FeatureSpec | None, entry: SessionKv, tokens: Sequence[int]
    ) -> None:
        """Copies what a session has committed, as far as it is not known yet.

        Positions whose features were asked for and are no longer kept would be of no use to a
        draft: such a session is not kept.

        Args:
            scope: With whom it is shared.
            spec: Features it keeps; None = none.
            entry: Its memory.
            tokens: Token of every committed position.
        """
        ring = entry.features
        if spec is not None and (ring is None or ring.first_kept(entry.length)):
            return
        if ring is not None and not self._features.widen(ring.layout):
            return
        if spec not in self._specs and len(self._specs) >= _MAX_KINDS:
            return
        self._specs[spec] = None
        begin, slots = self._tree.insert((scope, spec), tokens)
        if not len(slots):
            return
        end = begin + len(slots)
        try:
            places = torch.from_numpy(slots).to(self._device)
            for shape, stack in self._stacks.items():
                stack[:, :, places] = entry.stacks[shape][:, :, begin:end]
            if ring is not None:
                self._features.view(ring.layout)[places] = ring.read(begin, end)
        except BaseException:
            # These slots were not all written: nobody may be given them.
            self._tree.take_back((scope, spec), tokens, begin)
            raise

    def check_integrity(self) -> None:
        """Checks the accounts.

        Raises:
            RuntimeError: They do not add up.
        """
        self._tree.check_integrity()
