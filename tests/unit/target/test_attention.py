"""Who sees whom, against a naive reading of the rule; attention against plain softmax."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from arborist.common.packed_attention import BATCH_ARGUMENT, PackedBatch, Segment, packed_attention
from arborist.core.errors import MismatchError
from arborist.core.tree import node_depths


class Layer(nn.Module):
    """An attention layer, as far as its number goes."""

    layer_idx = 0


class Past:
    """KV of one layer that lies in plain tensors."""

    def __init__(self, length: int, heads: int, width: int) -> None:
        self.keys = torch.randn(heads, length, width)
        self.values = torch.randn(heads, length, width)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns everything before and with the rows."""
        return torch.cat((self.keys, keys), dim=1), torch.cat((self.values, values), dim=1)


def sees(past: int, parents: list[int] | None, row: int, key: int, window: int | None) -> bool:
    """Says whether a row attends to a slot, from the rule's own words."""
    rows = range(1000) if parents is None else node_depths(parents)
    if key < past:
        position = key
    else:
        node = row
        while node > key - past:
            node = node - 1 if parents is None else parents[node - 1]
        if node != key - past:
            return False
        position = past + rows[key - past]
    return window is None or past + rows[row] - position < window


segments = st.tuples(
    st.integers(0, 12),
    st.one_of(
        st.integers(1, 7),
        st.lists(st.integers(0, 100), max_size=9).map(
            lambda draws: [draw % (i + 1) for i, draw in enumerate(draws)]
        ),
    ),
)


def segment(past: int, shape: int | list[int], heads: int, width: int) -> tuple[Segment, Past]:
    """Makes a chain of so many rows, or a tree of such parents."""
    kv = Past(past, heads, width)
    if isinstance(shape, int):
        return Segment(kv, past, shape, None), kv
    return Segment(kv, past, len(shape) + 1, shape), kv


@given(
    shapes=st.lists(segments, min_size=1, max_size=3),
    window=st.sampled_from([None, 1, 2, 5, 30]),
    softcap=st.sampled_from([None, 2.0]),
    groups=st.sampled_from([1, 3]),
)
@settings(max_examples=40, deadline=None)
def test_packed_attention_equals_softmax_over_what_is_seen(
    shapes: list[tuple[int, int | list[int]]],
    window: int | None,
    softcap: float | None,
    groups: int,
) -> None:
    """Every row of every session is the weighted sum of the values it may see, and no others."""
    kv_heads, width = 2, 4
    parts = [segment(past, shape, kv_heads, width) for past, shape in shapes]
    rows = sum(one.rows for one, _ in parts)
    query = torch.randn(1, rows, kv_heads * groups, width).transpose(1, 2)
    key, value = (torch.randn(1, rows, kv_heads, width).transpose(1, 2) for _ in range(2))
    batch = PackedBatch([one for one, _ in parts])

    out, _ = packed_attention(
        Layer(),
        query,
        key,
        value,
        None,
        scaling=0.5,
        sliding_window=window,
        softcap=softcap,
        arborist_batch=batch,
    )

    assert out.shape == (1, rows, kv_heads * groups, width)
    begin = 0
    for (one, kv), (past, shape) in zip(parts, shapes, strict=True):
        parents = None if isinstance(shape, int) else shape
        span = slice(begin, begin + one.rows)
        keys, values = kv.extend(0, key[0, :, span], value[0, :, span])
        for row in range(one.rows):
            seen = [k for k in range(past + one.rows) if sees(past, parents, row, k, window)]
            for head in range(kv_heads * groups):
                scores = keys[head // groups, seen] @ query[0, head, begin + row] * 0.5
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                expected = scores.softmax(0) @ values[head // groups, seen]
                torch.testing.assert_close(
                    out[0, begin + row, head], expected, atol=1e-5, rtol=1e-4
                )
        begin += one.rows


def test_the_scale_defaults_to_the_width() -> None:
    """Without a factor, scores are divided by the square root of the width."""
    one, _ = segment(5, [0, 0, 1], 2, 4)
    query, key, value = (torch.randn(1, 2, 4, 4) for _ in range(3))
    batch = PackedBatch([one])

    outs = [
        packed_attention(Layer(), query, key, value, None, scaling=scaling, arborist_batch=batch)[0]
        for scaling in (None, 1 / math.sqrt(4))
    ]

    torch.testing.assert_close(*outs)


@pytest.mark.parametrize("argument", ["position_bias", "s_aux"])
def test_attention_that_needs_more_is_refused(argument: str) -> None:
    """A model with sinks or position biases is not served wrongly but refused."""
    one, _ = segment(0, 2, 2, 4)
    query, key, value = (torch.randn(1, 2, 2, 4) for _ in range(3))
    extra: dict[str, Any] = {BATCH_ARGUMENT: PackedBatch([one]), argument: torch.zeros(1)}

    with pytest.raises(MismatchError, match=argument):
        packed_attention(Layer(), query, key, value, None, **extra)
