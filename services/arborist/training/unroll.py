"""Attention of unrolled head training: each row sees what it will see inside a draft tree."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


class UnrolledAttention:
    """Attention for the unrolled passes of one batch of sequences.

    Pass 1 reads true features. In pass j the row at t stands at tree level j: its own key and those
    of its j-2 nearest ancestors come from predicted features (of passes j, j-1, …, 2), all earlier
    ones from true features, as when drafting (HASS, arXiv 2408.15766, §3.2). One layer only.
    """

    def __init__(self, num_rows: int, num_columns: int) -> None:
        """Begin a batch.

        Args:
        num_rows: sequences B.
        num_columns: pairs T of each, padded on the right.
        """
        self._shape = (num_rows, num_columns)
        self._keys: list[Tensor] = []  # of each pass: [B, heads, T, hd]
        self._values: list[Tensor] = []
        self._causal: Tensor | None = None

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One pass over all rows; the interface of ``EagleHead``.

        Args:
            layer_index: 0.
            query: [B·T, heads, hd].
            key: [B·T, kv_heads, hd].
            value: [B·T, kv_heads, hd].
        Returns:
            [B·T, heads·hd].
        """
        if layer_index:
            raise ValueError("unrolled training supports heads of one layer")
        groups = query.shape[1] // key.shape[1]
        queries = self._split(query)
        self._keys.append(self._split(key).repeat_interleave(groups, 1))
        self._values.append(self._split(value).repeat_interleave(groups, 1))
        if len(self._keys) == 1:
            mixed = F.scaled_dot_product_attention(
                queries, self._keys[0], self._values[0], is_causal=True
            )
        else:
            mixed = self._mixed_pass(queries)
        return mixed.transpose(1, 2).reshape(query.shape[0], -1)

    def _mixed_pass(self, queries: Tensor) -> Tensor:
        scale = 1.0 / math.sqrt(queries.shape[-1])
        num_columns = self._shape[1]
        scores = queries @ self._keys[0].transpose(-1, -2) * scale  # [B, heads, T, T]
        # Lag d: the key at t-d comes from pass (newest - d), for every pass but the first.
        lags = range(min(len(self._keys) - 1, num_columns))
        own = []
        for lag in lags:
            keys = self._keys[-1 - lag]
            own.append(
                (queries[:, :, lag:] * keys[:, :, : num_columns - lag]).sum(-1) * scale
            )  # [B, heads, T-lag]
        offsets = torch.arange(num_columns, device=queries.device)
        distance = offsets[:, None] - offsets[None, :]  # [T, T]
        for lag, values in zip(lags, own, strict=True):
            padded = F.pad(values, (lag, 0))[..., None]  # [B, heads, T, 1]
            scores = torch.where(distance == lag, padded, scores)
        weights = scores.masked_fill(distance < 0, -math.inf).softmax(-1)
        mixed = weights @ self._values[0]  # [B, heads, T, hd]
        for lag in lags:
            share = weights.diagonal(-lag, -2, -1)[..., None]  # [B, heads, T-lag, 1]
            change = self._values[-1 - lag] - self._values[0]
            mixed = mixed + F.pad(share * change[:, :, : num_columns - lag], (0, 0, lag, 0))
        return mixed

    def _split(self, states: Tensor) -> Tensor:
        rows, columns = self._shape
        return states.view(rows, columns, states.shape[1], -1).transpose(1, 2)
