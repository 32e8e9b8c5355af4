"""Attention of one packed forward: every session's rows over that session's own KV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from arborist.draft.kv import KvPool, KvRegion

Mask: TypeAlias = npt.NDArray[np.float32]
"""Additive, 0 or -inf."""


@dataclass(slots=True)
class Span:
    """Consecutive rows of a packed forward that belong to one session.

    Attributes:
        region: The session's KV.
        kv_begin: Slot of the first row; the rows see every slot before it that `mask` leaves out.
        num_rows: Rows, at least 1.
        mask: (rows, newest slots), over the newest slots up to the last row's; None = all seen.
        first_row: Place in the packed forward.
    """

    region: KvRegion
    kv_begin: int
    num_rows: int
    mask: Mask | None
    first_row: int = 0

    @property
    def rows(self) -> slice:
        """Returns its rows in the packed forward."""
        return slice(self.first_row, self.first_row + self.num_rows)

    @property
    def kv_end(self) -> int:
        """Returns how many slots the rows may see, their own included."""
        return self.kv_begin + self.num_rows


class PackedAttention:
    """Implements `Attend` for one forward; rows of one session never see another's."""

    def __init__(self, kv: KvPool, spans: Sequence[Span]) -> None:
        """Prepares one forward.

        Args:
            kv: KV of all sessions.
            spans: Cover the packed rows in order.
        """
        self._kv = kv
        self._spans = spans
        self._masks: list[Tensor | None] | None = None

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Writes the rows' KV, then attends session by session.

        Args:
            layer_index: Layer of the head.
            query: (R, heads, hd), RoPE applied.
            key: (R, kv_heads, hd), RoPE applied.
            value: (R, kv_heads, hd).
        Returns:
            (R, heads * hd).
        """
        if self._masks is None:  # The same in every layer.
            self._masks = [_full_mask(span, query) for span in self._spans]
        outputs = [
            self._attend_span(span, mask, layer_index, query, key, value)
            for span, mask in zip(self._spans, self._masks, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_span(
        self,
        span: Span,
        mask: Tensor | None,
        layer_index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> Tensor:
        rows = span.rows
        self._kv.write(layer_index, span.region, span.kv_begin, key[rows], value[rows])
        keys, values = self._kv.view(layer_index, span.region, span.kv_end)  # [S, kv_heads, hd]
        output = F.scaled_dot_product_attention(
            query[rows].transpose(0, 1).unsqueeze(0),  # [1, heads, R, hd]
            keys.transpose(0, 1).unsqueeze(0),  # [1, kv_heads, S, hd]
            values.transpose(0, 1).unsqueeze(0),
            attn_mask=mask,
            enable_gqa=True,
        )
        return output[0].transpose(0, 1).reshape(span.num_rows, -1)  # [R, heads * hd]


def causal_mask(count: int) -> Mask | None:
    """Returns the mask of a chain of rows, (count, count); None for a single row."""
    if count == 1:
        return None
    return np.triu(np.full((count, count), -np.inf, dtype=np.float32), 1)


def no_scratch() -> Mask:
    """Returns the mask of level 1's parent, the last true pair: it sees no node, (1, 0)."""
    return np.zeros((1, 0), dtype=np.float32)


def tree_mask(seen: Mask, parents: npt.NDArray[np.int64]) -> Mask:
    """Returns the mask of a new level: what the parent saw, and the node itself.

    Args:
        seen: (rows of the newest level's parents, nodes so far).
        parents: Row of each new node's parent, shape (R,).
    Returns:
        (R, nodes so far + R).
    """
    count, width = len(parents), seen.shape[1]
    mask = np.full((count, width + count), -np.inf, dtype=np.float32)
    mask[:, :width] = seen[parents]
    mask[np.arange(count), width + np.arange(count)] = 0.0
    return mask


def _full_mask(span: Span, like: Tensor) -> Tensor | None:
    """Returns the mask over all slots, (R, S), in the dtype and on the device of `like`."""
    if span.mask is None:
        return None
    mask = like.new_zeros((span.num_rows, span.kv_end))
    mask[:, span.kv_end - span.mask.shape[1] :] = torch.from_numpy(span.mask)
    return mask
