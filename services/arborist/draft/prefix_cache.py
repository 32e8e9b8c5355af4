"""KV of drafts' sessions that have ended, for those that begin alike."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from arborist.core.errors import InvalidArgumentError
from arborist.core.prefix import PrefixCounts
from arborist.core.prefix_tree import PrefixTree
from arborist.draft.kv import KvPool, KvRegion


class PrefixCache:
    """Copies of committed rows, a slot each, allocated once and beside the KV of sessions.

    Row t of a head holds feature f_t with token x_{t+1} and depends on tokens x_0 .. x_{t+1}: its
    key ends with the successor x_{t+1}. Row t of a language model depends on x_0 .. x_t.
    """

    def __init__(self, kv: KvPool, capacity: int) -> None:
        """Allocates every slot.

        Args:
            kv: KV of the sessions.
            capacity: Rows, in tokens.
        Raises:
            InvalidArgumentError: capacity is below 1.
        """
        if capacity < 1:
            raise InvalidArgumentError("prefix_cache_tokens", capacity, "at least 1")
        self._kv = kv
        self._tree = PrefixTree(capacity)
        self._buffer = kv.buffer_of(capacity)  # [L, 2, N, kv_heads, hd]
        self._num_queried = 0
        self._num_hits = 0

    @property
    def counts(self) -> PrefixCounts:
        """Returns what the cache did so far."""
        return PrefixCounts(
            self._num_queried, self._num_hits, self._tree.num_tokens, self._buffer.nbytes
        )

    def take_over(self, scope: Hashable, tokens: Sequence[int], region: KvRegion) -> int:
        """Copies the longest known beginning into an empty session.

        Args:
            scope: With whom the session shares, and the tokens before the first row's.
            tokens: The newest token each row depends on; no more than the region takes.
            region: Where the session's KV lies.
        Returns:
            Rows copied; 0 when there is no memory to copy them.
        """
        self._num_queried += len(tokens)
        slots = self._tree.match(scope, tokens)
        count = len(slots)
        if not count:
            return 0
        try:
            places = torch.from_numpy(slots).to(self._buffer.device)
            self._kv.rows(region, 0, count)[:] = self._buffer[:, :, places]
        except torch.OutOfMemoryError:
            return 0  # The session then extends it itself.
        self._num_hits += count
        return count

    def keep(self, scope: Hashable, tokens: Sequence[int], region: KvRegion) -> None:
        """Copies what a session has committed, as far as it is not known yet.

        Args:
            scope: As in `take_over`.
            tokens: The newest token each committed row depends on.
            region: Where the session's KV lies.
        """
        begin, slots = self._tree.insert(scope, tokens)
        if not len(slots):
            return
        try:
            places = torch.from_numpy(slots).to(self._buffer.device)
            self._buffer[:, :, places] = self._kv.rows(region, begin, begin + len(slots))
        except BaseException:
            # These slots were not written: nobody may be given them.
            self._tree.take_back(scope, tokens, begin)
            raise

    def check_integrity(self) -> None:
        """Checks the accounts.

        Raises:
            RuntimeError: They do not add up.
        """
        self._tree.check_integrity()
