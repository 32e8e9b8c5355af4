"""Rows of a language-model draft in a packed forward: what they see, where their KV lies."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from arborist.common.packed_attention import Segment
from arborist.draft.attention import Span
from arborist.draft.kv import KvPool


class SpanKv:
    """The KV of one span: common.packed_attention.KvView over a region of the draft's pool."""

    def __init__(self, pool: KvPool, span: Span) -> None:
        """Touches nothing yet."""
        self._pool = pool
        self._span = span

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes rows; returns everything before and with them.

        Args:
            layer: Index of the decoder layer.
            keys: (kv_heads, rows, width).
            values: (kv_heads, rows, width).
        Returns:
            Keys and values of the region's slots so far, each (kv_heads, slots, width); views.
        """
        span = self._span
        self._pool.write(
            layer, span.region, span.kv_begin, keys.transpose(0, 1), values.transpose(0, 1)
        )
        all_keys, all_values = self._pool.view(layer, span.region, span.kv_end)
        return all_keys.transpose(0, 1), all_values.transpose(0, 1)


class DraftSegment(Segment):
    """Rows of one session: committed tokens, or a level of its tree.

    Slots before the span's mask hold committed tokens, slot i position i. Behind them lie the nodes
    of the tree, of which a row sees its own path alone: the n-th it sees is n positions further.
    """

    def __init__(self, pool: KvPool, span: Span, positions: npt.NDArray[np.int64]) -> None:
        """Describes rows.

        Args:
            pool: KV of all sessions.
            span: The rows.
            positions: Of each row, shape (rows,).
        """
        super().__init__(SpanKv(pool, span), span.kv_begin, span.num_rows, None)
        self._positions = positions
        one = np.zeros((1, 1), dtype=np.float32)  # A lone row sees everything.
        self._own: npt.NDArray[np.bool_] = (one if span.mask is None else span.mask) == 0
        self._num_older: int = span.kv_end - self._own.shape[1]

    @property
    def starts_chain(self) -> bool:
        """Returns whether the rows are a plain sequence from position 0."""
        return self.past == 0  # A tree has a root before it.

    def first_seen(self, window: int | None) -> int:
        """Returns the first slot any row attends to."""
        if window is None:
            return 0
        first = int(self._positions.min()) - window + 1
        return max(0, min(first, self._num_older))

    def _seen(self, window: int | None) -> npt.NDArray[np.bool_]:
        first = self.first_seen(window)
        older = np.ones((self.rows, self._num_older - first), dtype=np.bool_)
        own = self._own
        if window is not None:
            oldest = self._positions[:, None] - window  # [rows, 1], no longer seen
            older &= np.arange(first, self._num_older)[None, :] > oldest
            own = own & (self._num_older + own.cumsum(axis=1) - 1 > oldest)
        return np.concatenate((older, own), axis=1)  # [rows, slots − first]
