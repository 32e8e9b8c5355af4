"""EAGLE-2's policy and the limits of a tree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from arborist.core.errors import InvalidArgumentError
from arborist.core.policy import Eagle2Policy
from arborist.core.shape import MAX_DEPTH, MAX_NUM_DRAFT_TOKENS, MAX_TOP_K, TreeShape
from arborist.core.tree import DraftTree, Level


def level(rows: int, top_k: int, seed: int) -> Level:
    """A random level."""
    rng = np.random.default_rng(seed)
    logprobs = -np.sort(rng.random((rows, top_k)))
    tokens = np.stack([rng.permutation(100)[:top_k] for _ in range(rows)])
    return Level(tokens, logprobs.astype(np.float32))


@pytest.mark.parametrize("shape", [TreeShape(), TreeShape(1, 1, 1), TreeShape(4, 3, 256)])
def test_a_round_has_depth_levels_and_the_whole_pool(shape: TreeShape) -> None:
    """`depth` counts levels below the root; the pool is k + (depth − 1)·k²."""
    policy = Eagle2Policy(shape)
    tree = DraftTree(level(1, shape.top_k, 0))
    expansions = 0
    while (frontier := policy.frontier(tree)) is not None:
        assert len(frontier) == shape.top_k
        expansions += 1
        tree.grow(frontier, level(len(frontier), shape.top_k, expansions))
    assert expansions == shape.depth - 1
    assert tree.num_levels == shape.depth
    assert len(tree) == shape.max_pool_size
    chosen = policy.select(tree)
    assert len(chosen.tokens) == min(shape.num_draft_tokens, shape.max_pool_size)
    assert max(chosen.depths) <= shape.depth


def test_the_default_is_the_papers() -> None:
    """Depth 6, top_k 10 and 60 drafted tokens, a pool of 510."""
    shape = TreeShape()
    assert (shape.depth, shape.top_k, shape.num_draft_tokens) == (6, 10, 60)
    assert shape.max_pool_size == 510


@pytest.mark.parametrize(
    ("field", "limit"),
    [
        ("depth", MAX_DEPTH),
        ("top_k", MAX_TOP_K),
        ("num_draft_tokens", MAX_NUM_DRAFT_TOKENS),
    ],
)
@pytest.mark.parametrize("step", [0, -1, None, True, 1.5])
def test_sizes_outside_their_limits_are_refused(field: str, limit: int, step: float | None) -> None:
    """The message names the field as the caller wrote it, the value and the limit."""
    allowed: dict[str, Any] = {field: limit}
    assert TreeShape(**allowed).max_pool_size > 0
    value = limit + 1 if step is None else step
    refused: dict[str, Any] = {field: value}
    message = rf"speculation\.{field} = {value}: must be an integer in \[1, {limit}\]"
    with pytest.raises(InvalidArgumentError, match=message):
        TreeShape(**refused)
