"""Attention of a packed batch, behind transformers' attention interface.

Rows of all sessions go through the decoder as one sequence [1, rows, hidden]. Only attention knows
where one session ends and the next begins: a `PackedBatch` travels with the model's keyword
arguments to every attention layer, which hands it to `packed_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from arborist.common.slab_attention import SharedSlab, SlabGroup, slab_groups
from arborist.core.errors import MismatchError
from arborist.core.tree import ancestor_mask, node_depths

ATTENTION = "arborist_packed"
BATCH_ARGUMENT = "arborist_batch"


class KvView(Protocol):
    """Where one session's rows keep their keys and values."""

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes rows; returns keys and values of everything before and with them."""
        ...


class Segment:
    """The rows of one session inside a packed batch.

    Attributes:
        kv: Where their keys and values go.
        past: Positions before the first row.
        rows: Number of rows.
        depths: Distance of each row's position from the first row's.
    """

    def __init__(self, kv: KvView, past: int, rows: int, parents: Sequence[int] | None) -> None:
        """Describes rows.

        Args:
            kv: Where their keys and values go.
            past: Positions before the first row.
            rows: Number of rows.
            parents: Parent of each row but the first, 0 = the first row; None = a chain.
        """
        self.kv = kv
        self.past = past
        self.rows = rows
        self._parents = parents
        self.depths = list(range(rows)) if parents is None else node_depths(parents)
        self._masks: dict[tuple[int | None, int], Tensor | None] = {}

    def first_seen(self, window: int | None) -> int:
        """Returns the first position any row attends to."""
        return 0 if window is None else max(0, self.past - window + 1)

    @property
    def place(self) -> tuple[SharedSlab, int] | None:
        """Returns slab and slot of its memory; None = it is its own."""
        return getattr(self.kv, "place", None)

    def seen(self) -> npt.NDArray[np.bool_]:
        """Returns what each row attends to, (rows, past + rows); no window.

        To be called once the rows are certain to be written: it notes them.
        """
        expect = getattr(self.kv, "expect", None)
        if expect is not None:
            expect(self.rows)
        return self._seen(None)

    @property
    def starts_chain(self) -> bool:
        """Returns whether the rows are a plain sequence from position 0."""
        return self.past == 0 and self._parents is None

    def mask(self, window: int | None, groups: int, like: Tensor) -> Tensor | None:
        """Returns what each query row adds to its scores; built once per batch.

        Args:
            window: Sliding window in tokens, itself included; None = unbounded.
            groups: Query heads per KV head; the mask is repeated for each.
            like: Tensor that gives dtype and device.
        Returns:
            (groups · rows, past + rows − first_seen), 0 or −inf; None when every row sees all.
        """
        key = (window, groups)
        if key not in self._masks:
            seen = self._seen(window)
            if seen.all():
                self._masks[key] = None
            else:
                bias = np.where(seen, np.float32(0), np.float32(-np.inf))  # [rows, keys]
                tensor = torch.from_numpy(np.tile(bias, (groups, 1)))
                self._masks[key] = tensor.to(device=like.device, dtype=like.dtype)
        return self._masks[key]

    def _seen(self, window: int | None) -> npt.NDArray[np.bool_]:
        if self._parents is None:
            own = np.tril(np.ones((self.rows, self.rows), dtype=np.bool_))
        else:
            own = ancestor_mask(self._parents)
        first = self.first_seen(window)
        seen = np.concatenate((np.ones((self.rows, self.past - first), np.bool_), own), axis=1)
        if window is not None:
            depths = np.asarray(self.depths)  # [rows]
            keys = np.concatenate((np.arange(first, self.past), self.past + depths))
            seen &= keys[None, :] > (self.past + depths)[:, None] - window
        return seen  # [rows, past − first + rows]


@dataclass(slots=True)
class PackedBatch:
    """What one forward carries to the attention layers and brings back from the decoder.

    Attributes:
        segments: Rows of each session, in packed order.
        layer_inputs: Filled in: input of the decoder layers that are watched, (rows, hidden).
        last_hidden: Filled in: the state after the final norm, (rows, hidden).
    """

    segments: Sequence[Segment]
    _groups: list[SlabGroup] | None = None
    layer_inputs: dict[int, Tensor] = field(default_factory=dict)
    last_hidden: Tensor | None = None

    def groups(self, window: int | None, softcap: float | None) -> list[SlabGroup]:
        """Returns the sessions that attend together in a layer.

        Args:
            window: Sliding window in tokens; None = unbounded.
            softcap: Bound of the scores; None = none.
        """
        if softcap is not None or len(self.segments) < 2:
            return []
        if window is not None and any(one.past + one.rows > window for one in self.segments):
            return []
        if self._groups is None:
            self._groups = slab_groups(self.segments)
        return self._groups

    @property
    def hidden(self) -> Tensor:
        """Returns the state after the final norm, (rows, hidden), once the forward has run."""
        if self.last_hidden is None:
            raise MismatchError("the decoder did not return its last hidden state")
        return self.last_hidden


def register_attention() -> None:
    """Makes `packed_attention` known to transformers; again is no error.

    No mask function goes with it: transformers then builds no mask at all.
    """
    AttentionInterface.register(ATTENTION, packed_attention)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attends inside each session, over its KV and its new rows.

    Args:
        module: The attention layer; its `layer_idx` says whose KV.
        query: (1, heads, rows, width).
        key: (1, kv_heads, rows, width).
        value: (1, kv_heads, rows, width).
        attention_mask: Not used; the batch knows.
        scaling: Factor of the scores; None = 1/√width.
        sliding_window: Tokens a row sees, itself included; None = all.
        softcap: Bound of the scores, softcap · tanh(score / softcap); None = none.
        **kwargs: Holds the PackedBatch under BATCH_ARGUMENT.
    Returns:
        (1, rows, heads, width) and None.
    Raises:
        MismatchError: The model's attention needs something that is not built.
    """
    batch: PackedBatch = kwargs[BATCH_ARGUMENT]
    for unknown in ("position_bias", "s_aux", "sinks"):
        if kwargs.get(unknown) is not None:
            raise MismatchError(f"{type(module).__name__} needs {unknown}, which is not supported")
    layer: int = module.layer_idx  # type: ignore[assignment]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if len(batch.segments) == 1:
        out = _attend(
            batch.segments[0], layer, query[0], key[0], value[0], scale, sliding_window, softcap
        )
        return out[None], None
    out = query.new_empty((query.shape[2], query.shape[1], value.shape[3]))
    together: set[int] = set()
    for group in batch.groups(sliding_window, softcap):
        piece = group.attend(layer, query[0], key[0], value[0], scale)
        if piece is None:
            continue
        packed = group.rows_in_forward()
        if packed is None:
            return piece[None], None
        out[packed] = piece
        together.update(group.members)
    begin = 0
    for index, segment in enumerate(batch.segments):
        rows = slice(begin, begin + segment.rows)
        begin = rows.stop
        if index not in together:
            q, k, v = query[0, :, rows], key[0, :, rows], value[0, :, rows]
            out[rows] = _attend(segment, layer, q, k, v, scale, sliding_window, softcap)
    return out[None], None


def _attend(
    segment: Segment,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Returns (rows, heads, width) of one session."""
    keys, values = segment.kv.extend(layer, key, value)  # [kv_heads, past + rows, width]
    first = segment.first_seen(window)
    if first:
        keys, values = keys[:, first:], values[:, first:]
    heads, rows, width = query.shape
    kv_heads = keys.shape[0]
    groups = heads // kv_heads
    if segment.starts_chain and rows > 1 and softcap is None and (window or rows) >= rows:
        # A prompt's first chunk: the kernel skips the upper triangle when it knows of it.
        out = F.scaled_dot_product_attention(
            query.view(kv_heads, groups, rows, width),
            keys[:, None].expand(-1, groups, -1, -1),
            values[:, None].expand(-1, groups, -1, -1),
            is_causal=True,
            scale=scale,
        )  # [kv_heads, groups, rows, width]
        return out.permute(2, 0, 1, 3).reshape(rows, heads, -1)
    # Query heads that share a KV head become more rows of it: no copy of K or V.
    folded = query.reshape(1, kv_heads, groups * rows, width)
    mask = segment.mask(window, groups, query)
    if softcap is None:
        out = F.scaled_dot_product_attention(
            folded, keys[None], values[None], attn_mask=mask, scale=scale
        )
    else:
        out = _softcapped(folded[0], keys, values, mask, scale, softcap)
    out = out.view(kv_heads, groups, rows, -1)
    return out.permute(2, 0, 1, 3).reshape(rows, heads, -1)


def _softcapped(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, softcap: float
) -> Tensor:
    scores = torch.matmul(query, keys.transpose(1, 2)) * scale  # [kv_heads, groups·rows, keys]
    scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    return torch.matmul(scores.float().softmax(dim=-1).to(values.dtype), values)
