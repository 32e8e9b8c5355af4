"""The draft tree against a naive reference, with ties everywhere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.naive import NaivePool, levels, trees

from arborist.core.errors import InvalidArgumentError
from arborist.core.policy import Eagle2Policy
from arborist.core.shape import TreeShape
from arborist.core.tree import (
    ROOT_ONLY,
    DraftTree,
    Level,
    VerifyTree,
    ancestor_mask,
    best_first,
    check_tree,
    node_depths,
)


@st.composite
def grown(draw: st.DrawFn) -> tuple[DraftTree, NaivePool, TreeShape]:
    """A tree grown by the policy, and the naive pool grown by the naive rule."""
    shape = TreeShape(
        depth=draw(st.integers(1, 4)),
        top_k=draw(st.integers(1, 5)),
        num_draft_tokens=draw(st.integers(1, 30)),
    )
    policy = Eagle2Policy(shape)
    level = draw(levels(1, shape.top_k))
    tree, pool = DraftTree(level), NaivePool()
    pool.add([-1], level)
    while (frontier := policy.frontier(tree)) is not None:
        parents = pool.frontier(shape.top_k)
        assert [pool.newest[index] for index in frontier] == parents
        level = draw(levels(len(frontier), shape.top_k))
        tree.grow(frontier, level)
        pool.add(parents, level)
    return tree, pool, shape


def paths_of(chosen: VerifyTree) -> list[tuple[int, ...]]:
    """Token path of every drafted node, walking the parents."""
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(chosen.tokens, chosen.parent_indices, strict=True):
        paths.append((*paths[parent], token))
    return paths[1:]


@given(grown())
@settings(max_examples=150, deadline=None)
def test_rerank_equals_the_naive_reference(case: tuple[DraftTree, NaivePool, TreeShape]) -> None:
    """The same candidates, in pool order, with the same paths and scores."""
    tree, pool, shape = case
    chosen = Eagle2Policy(shape).select(tree)
    expected = pool.rerank(shape.num_draft_tokens)
    assert chosen.pool_indices == expected
    assert paths_of(chosen) == [pool.candidates[index].path for index in expected]
    assert chosen.scores == [float(pool.candidates[index].score) for index in expected]
    assert len(tree) == len(pool.candidates) <= shape.max_pool_size


@given(grown())
@settings(max_examples=150, deadline=None)
def test_reranked_trees_are_connected_and_ties_keep_the_shallower(
    case: tuple[DraftTree, NaivePool, TreeShape],
) -> None:
    """Parents come first and are kept; nothing left out beats, or ties above, what is kept."""
    tree, pool, shape = case
    chosen = tree.rerank(shape.num_draft_tokens)
    check_tree(chosen.tokens, chosen.parent_indices, shape.num_draft_tokens, vocab_size=41)
    kept = set(chosen.pool_indices)
    for index in kept:
        assert pool.candidates[index].parent in kept | {-1}
    for index, other in itertools.product(set(range(len(pool.candidates))) - kept, kept):
        left_out, inside = pool.candidates[index], pool.candidates[other]
        assert left_out.score <= inside.score
        if left_out.score == inside.score:
            assert left_out.depth >= inside.depth
    assert len(kept) == min(shape.num_draft_tokens, len(tree))


@given(grown(), st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_a_smaller_tree_is_part_of_a_larger_one(
    case: tuple[DraftTree, NaivePool, TreeShape], count: int
) -> None:
    """Asking for more nodes only adds nodes."""
    tree, _, shape = case
    small, large = sorted((count, shape.num_draft_tokens))
    assert set(tree.rerank(small).pool_indices) <= set(tree.rerank(large).pool_indices)


def one_level(*logprobs: float) -> Level:
    """A level of one row with tokens 10, 11, ..."""
    count = len(logprobs)
    return Level(np.arange(10, 10 + count)[None], np.array([logprobs], dtype=np.float32))


def test_a_certain_child_does_not_orphan_itself() -> None:
    """A child with log-prob 0 ties with its parent, and the parent is the one kept."""
    tree = DraftTree(one_level(-0.5, -1.0))
    frontier = tree.frontier(2)
    tree.grow(frontier, Level(np.array([[1, 2], [3, 4]]), np.zeros((2, 2), dtype=np.float32)))
    assert tree.rerank(1).pool_indices == [0]
    assert tree.rerank(2).pool_indices == [0, 2]
    assert tree.rerank(4).pool_indices == [0, 1, 2, 3]


def test_the_frontier_is_chosen_inside_the_newest_level_only() -> None:
    """A good unexpanded node of an older level is never expanded later, but stays in the pool."""
    tree = DraftTree(one_level(-0.1, -0.2, -0.3))
    first = tree.frontier(1)
    assert first.tolist() == [0]
    tree.grow(first, one_level(-5.0, -6.0, -7.0))
    assert tree.frontier(2).tolist() == [0, 1]
    np.testing.assert_allclose(tree.newest_scores, [-5.1, -6.1, -7.1], atol=1e-6)
    assert tree.rerank(3).pool_indices == [0, 1, 2]


def test_rounding_above_zero_never_lifts_a_child_over_its_parent() -> None:
    """A log-prob that rounding made positive counts as 0."""
    tree = DraftTree(one_level(1e-7, -1.0))
    assert tree.newest_scores[0] == 0
    tree.grow(tree.frontier(1), one_level(1e-6, -2.0))
    assert tree.newest_scores[0] == 0
    assert tree.rerank(1).pool_indices == [0]


def test_scores_add_up_in_fp32() -> None:
    """Cumulative scores are fp32 sums, whatever comes in."""
    tree = DraftTree(one_level(-0.1))
    tree.grow(tree.frontier(1), one_level(-0.2))
    assert tree.newest_scores.dtype == np.float32
    assert tree.newest_scores[0] == np.float32(-0.1) + np.float32(-0.2)


@given(trees())
def test_depths_and_mask_follow_the_parents(case: tuple[list[int], list[int]]) -> None:
    """A node sees itself and what lies on its way to the root, and its depth counts that way."""
    _, parents = case
    mask, depths = ancestor_mask(parents), node_depths(parents)
    for node in range(len(parents) + 1):
        way = {node}
        step = node
        while step:
            step = parents[step - 1]
            way.add(step)
        assert set(np.flatnonzero(mask[node]).tolist()) == way
        assert depths[node] == len(way) - 1


@given(st.lists(st.sampled_from([0.0, -0.5, -1.0, -2.0]), max_size=12))
def test_best_first_is_a_stable_order(scores: list[float]) -> None:
    """Descending, and the smaller index first on ties."""
    order = best_first(np.array(scores, dtype=np.float32)).tolist()
    assert order == sorted(range(len(scores)), key=lambda index: (-scores[index], index))


@given(trees())
def test_valid_trees_pass(case: tuple[list[int], list[int]]) -> None:
    """Parents first and distinct siblings is all that is asked."""
    check_tree(*case, max_nodes=14, vocab_size=64)


@pytest.mark.parametrize(
    ("tokens", "parents", "message"),
    [
        ([1, 2], [0], r"parent_indices = 1: must be as many as tokens \(2\)"),
        ([1, 2, 3, 4], [0, 0, 0, 0], "tokens = 4: must be at most 3 drafted nodes"),
        ([1, 9], [0, 1], r"tokens\[2\] = 9: must be in \[0, 9\)"),
        ([-1], [0], r"tokens\[1\] = -1"),
        ([1, 2], [0, 2], r"parent_indices\[2\] = 2: must be in \[0, 2\)"),
        ([1], [1], r"parent_indices\[1\] = 1: must be in \[0, 1\)"),
        ([1, 2], [0, -1], r"parent_indices\[2\] = -1"),
        ([1, 1], [0, 0], r"tokens\[2\] = 1: must be distinct among siblings"),
    ],
)
def test_what_is_no_bounded_tree_is_refused(
    tokens: list[int], parents: list[int], message: str
) -> None:
    """The message names the field, the value and the limit."""
    with pytest.raises(InvalidArgumentError, match=message):
        check_tree(tokens, parents, max_nodes=3, vocab_size=9)


def test_a_selection_without_a_parent_is_refused() -> None:
    """A policy cannot build a disconnected tree."""
    tree = DraftTree(one_level(-0.1, -0.2))
    tree.grow(tree.frontier(1), one_level(-0.3))
    with pytest.raises(ValueError, match="candidate 2 is kept without its parent 0"):
        tree.select(np.array([1, 2]))


def test_levels_of_the_wrong_shape_are_refused() -> None:
    """Rows and columns must agree, log-probs must be finite, level 1 has one row."""
    ids, probs = np.zeros((2, 3), dtype=np.int64), np.zeros((2, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="one shape"):
        Level(ids, probs[:1])
    with pytest.raises(ValueError, match="one shape"):
        Level(ids[0], probs[0])
    for bad in (np.nan, -np.inf):
        with pytest.raises(ValueError, match="finite"):
            Level(ids, np.full((2, 3), bad, dtype=np.float32))
    with pytest.raises(ValueError, match="one row"):
        DraftTree(Level(ids, probs))
    tree = DraftTree(one_level(-1.0, -2.0))
    with pytest.raises(ValueError, match="one row per frontier node"):
        tree.grow(tree.frontier(2), one_level(-1.0))


def test_the_empty_tree_is_the_root_alone() -> None:
    """A round without draft verifies the root."""
    assert ROOT_ONLY.depths == [0]
    assert ancestor_mask(ROOT_ONLY.parent_indices).tolist() == [[True]]
    check_tree(ROOT_ONLY.tokens, ROOT_ONLY.parent_indices, max_nodes=1, vocab_size=1)
