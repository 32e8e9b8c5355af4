"""Every policy against a naive reference, with ties everywhere, and the factory's errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.naive import NaivePool, levels

from arborist.core.dynamic_depth import DynamicDepthPolicy
from arborist.core.errors import InvalidArgumentError
from arborist.core.policies import tree_policy_by_name
from arborist.core.policy import Eagle2Policy, TreePolicy
from arborist.core.policy_settings import TREE_POLICY_NAMES
from arborist.core.shape import MAX_TOP_K, TreeShape
from arborist.core.static_policy import StaticTreePolicy
from arborist.core.tree import DraftTree, Level, VerifyTree, check_tree
from arborist.core.tree_paths import TreePaths

NaiveFrontier = Callable[[NaivePool, int], list[int] | None]
EXAMPLES = settings(max_examples=120, deadline=None)


@st.composite
def shapes(draw: st.DrawFn) -> TreeShape:
    """A small shape."""
    return TreeShape(draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 30)))


@st.composite
def rank_paths(draw: st.DrawFn) -> list[tuple[int, ...]]:
    """A static tree of at most 20 nodes, in any order, gaps among siblings included."""
    known: list[tuple[int, ...]] = []
    for _ in range(draw(st.integers(1, 20))):
        parent = draw(st.sampled_from([(), *(path for path in known if len(path) < 4)]))
        child = (*parent, draw(st.integers(0, 4)))
        if child not in known:
            known.append(child)
    return draw(st.permutations(known))


def grow(data: st.DataObject, policy: TreePolicy) -> tuple[DraftTree, NaivePool, list[list[int]]]:
    """Drafts as the decode loop does; returns also the pool indices expanded at each level."""
    top_k = policy.shape.top_k
    level = data.draw(levels(1, top_k))
    tree, pool = DraftTree(level), NaivePool()
    pool.add([-1], level)
    expanded: list[list[int]] = []
    while (frontier := policy.frontier(tree)) is not None:
        assert 1 <= len(frontier) <= MAX_TOP_K
        assert len(set(frontier.tolist())) == len(frontier)
        expanded.append([pool.newest[index] for index in frontier])
        level = data.draw(levels(len(frontier), top_k))
        tree.grow(frontier, level)
        pool.add(expanded[-1], level)
    assert tree.expanded.tolist() == list(itertools.chain(*expanded))
    return tree, pool, expanded


def check_selection(chosen: VerifyTree, pool: NaivePool, expected: list[int]) -> None:
    """The expected candidates, as one tree with parents first, with their paths and scores."""
    assert chosen.pool_indices == expected
    check_tree(chosen.tokens, chosen.parent_indices, max_nodes=256, vocab_size=41)
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(chosen.tokens, chosen.parent_indices, strict=True):
        paths.append((*paths[parent], token))
    assert paths[1:] == [pool.candidates[index].path for index in expected]
    assert chosen.scores == [float(pool.candidates[index].score) for index in expected]


@given(st.data(), st.sampled_from(TREE_POLICY_NAMES), shapes())
@EXAMPLES
def test_every_policy_keeps_to_its_shape(data: st.DataObject, name: str, shape: TreeShape) -> None:
    """Whatever the policy, the tree is one tree inside the bounds it was asked for."""
    policy = tree_policy_by_name(name, shape)
    tree, _, _ = grow(data, policy)
    chosen = policy.select(tree)
    check_tree(chosen.tokens, chosen.parent_indices, shape.num_draft_tokens, vocab_size=41)
    assert chosen.tokens
    assert max(chosen.depths) <= tree.num_levels <= policy.shape.depth <= shape.depth
    assert policy.shape.top_k <= shape.top_k
    assert len(chosen.tokens) <= policy.shape.num_draft_tokens <= shape.num_draft_tokens


@given(st.data(), shapes())
@EXAMPLES
def test_without_value_the_frontier_is_the_nodes_own_best(
    data: st.DataObject, shape: TreeShape
) -> None:
    """Expanded is what is likely given its parent; reranked is still by the whole path."""
    policy = tree_policy_by_name("eagle2_no_value", shape)
    tree, pool, expanded = grow(data, policy)
    check_selection(policy.select(tree), pool, pool.rerank(shape.num_draft_tokens))
    naive = replay(pool, expanded, NaivePool.frontier_by_own, shape.top_k)
    assert expanded == naive
    assert len(expanded) == shape.depth - 1


@given(st.data(), st.booleans(), shapes())
@EXAMPLES
def test_without_rerank_the_nodes_come_in_order_of_expansion(
    data: st.DataObject, value: bool, shape: TreeShape
) -> None:
    """The frontiers, level by level and best first, until num_draft_tokens are found."""
    policy = Eagle2Policy(shape, value=value, rerank=False)
    rule = NaivePool.frontier if value else NaivePool.frontier_by_own
    tree, pool, expanded = grow(data, policy)
    assert expanded == replay(pool, expanded, rule, shape.top_k)
    chosen = [*itertools.chain(*expanded), *rule(pool, shape.top_k)][: shape.num_draft_tokens]
    check_selection(policy.select(tree), pool, sorted(chosen))
    full = len(chosen) == shape.num_draft_tokens
    assert full or tree.num_levels == shape.depth


def test_without_rerank_no_level_is_drafted_for_nothing() -> None:
    """Once the frontiers fill the tree, further levels could not be verified."""
    policy = Eagle2Policy(TreeShape(depth=6, top_k=2, num_draft_tokens=4), rerank=False)
    tree = DraftTree(flat_level(1, 2))
    frontier = policy.frontier(tree)
    assert frontier is not None
    tree.grow(frontier, flat_level(2, 2))
    assert policy.frontier(tree) is None
    assert policy.select(tree).depths == [0, 1, 1, 2, 2]


@given(st.data(), shapes(), st.floats(-6, 0))
@EXAMPLES
def test_dynamic_depth_stops_at_the_first_unlikely_frontier(
    data: st.DataObject, shape: TreeShape, threshold: float
) -> None:
    """Every expanded frontier holds enough probability, the one it stopped at does not."""
    policy = DynamicDepthPolicy(shape, threshold)
    tree, pool, expanded = grow(data, policy)
    check_selection(policy.select(tree), pool, pool.rerank(shape.num_draft_tokens))
    assert expanded == replay(pool, expanded, NaivePool.frontier, shape.top_k)

    def log_mass(frontier: list[int]) -> float:
        return math.log(sum(math.exp(pool.candidates[index].score) for index in frontier))

    assert all(log_mass(frontier) >= threshold - 1e-9 for frontier in expanded)
    if tree.num_levels < shape.depth:
        assert log_mass(pool.frontier(shape.top_k)) < threshold + 1e-9


@given(st.data(), rank_paths())
@EXAMPLES
def test_a_static_tree_is_the_paths_it_was_given(
    data: st.DataObject, paths: list[tuple[int, ...]]
) -> None:
    """Each node is the child of its rank of its parent, and only parents are expanded."""
    policy = StaticTreePolicy(TreePaths(paths))
    tree, pool, expanded = grow(data, policy)
    at: dict[tuple[int, ...], int] = {}
    for path in sorted(paths, key=lambda path: (len(path), path)):
        parent = at[path[:-1]] if len(path) > 1 else -1
        children = [i for i, one in enumerate(pool.candidates) if one.parent == parent]
        at[path] = children[path[-1]]
    check_selection(policy.select(tree), pool, sorted(at.values()))
    with_children = {path[:-1] for path in paths} - {()}
    assert sorted(itertools.chain(*expanded)) == sorted(at[path] for path in with_children)


@given(rank_paths(), shapes())
@EXAMPLES
def test_a_static_tree_is_cut_to_a_shape_from_below(
    paths: list[tuple[int, ...]], shape: TreeShape
) -> None:
    """What is too deep or of too high a rank goes, then the last nodes, level by level."""
    fitting = [
        path
        for path in sorted(paths, key=lambda path: (len(path), path))
        if len(path) <= shape.depth and all(rank < shape.top_k for rank in path)
    ]
    if not fitting:
        with pytest.raises(InvalidArgumentError, match=r"speculation\.top_k = .*at least"):
            TreePaths(paths).within(shape)
        return
    cut = TreePaths(paths).within(shape)
    left = [path for depth in range(1, 5) for path in cut.level(depth)]
    assert left == fitting[: shape.num_draft_tokens]


def test_eagle1s_tree_has_25_nodes_in_five_levels() -> None:
    """As in its code: 4, 8, 8, 3 and 2 nodes, of which 4, 4, 1 and 1 are expanded."""
    paths = TreePaths.eagle1()
    assert [len(paths.level(depth)) for depth in range(1, 6)] == [4, 8, 8, 3, 2]
    policy = tree_policy_by_name("eagle1_static", TreeShape())
    assert policy.shape == TreeShape(depth=5, top_k=4, num_draft_tokens=25)
    tree, rows = DraftTree(flat_level(1, 4)), []
    while (frontier := policy.frontier(tree)) is not None:
        rows.append(len(frontier))
        tree.grow(frontier, flat_level(len(frontier), 4))
    assert rows == [4, 4, 1, 1]
    assert len(policy.select(tree).tokens) == 25


@given(st.data(), shapes())
@EXAMPLES
def test_a_chain_is_eagle2_of_width_one(data: st.DataObject, shape: TreeShape) -> None:
    """As long as depth and num_draft_tokens allow, each node the child of the one before."""
    length = min(shape.depth, shape.num_draft_tokens)
    policy = tree_policy_by_name("chain", shape)
    assert policy.shape == TreeShape(length, 1, length)
    tree, _, _ = grow(data, policy)
    chosen = policy.select(tree)
    assert chosen.parent_indices == list(range(length))
    assert chosen == Eagle2Policy(TreeShape(length, 1, length)).select(tree)


def test_a_draft_that_answers_with_another_size_is_noticed() -> None:
    """A static tree never reads candidates that are not there."""
    policy = tree_policy_by_name("eagle1_static", TreeShape())
    tree = DraftTree(flat_level(1, 3))
    with pytest.raises(ValueError, match="3 candidates in place of 4"):
        policy.frontier(tree)
    with pytest.raises(ValueError, match="3 candidates in place of 4"):
        policy.select(tree)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "static tree = 0 paths: must be 1 to 256 paths"),
        ([[0], []], "path 1 = 0 ranks: must be 1 to 16 ranks"),
        ([[0] * depth for depth in range(1, 18)], "path 16 = 17 ranks: must be 1 to 16 ranks"),
        ([[32]], r"path 0 = 32: must be made of integers in \[0, 32\)"),
        ([[-1]], "path 0 = -1"),
        ([[True]], "path 0 = True"),
        ([["0"]], "path 0 = 0: must be made of integers"),
        (["0"], "path 0 = str: must be a list of child ranks"),
        ([0], "path 0 = int: must be a list of child ranks"),
        ([[0], [1], [0]], r"static tree = \[0\] twice: must be distinct paths"),
        ([[0], [1, 0, 0], [1]], r"static tree = without \[1, 0\]: must be listed with"),
        ([[i, j] for i in range(32) for j in range(9)], "288 paths"),
        (
            [[i] for i in range(32)]
            + [[i, j] for i in range(32) for j in range(2)]
            + [[i, j, 0] for i in range(32) for j in range(2)],
            "nodes with children at depth 2 = 64: must be at most 32",
        ),
    ],
)
def test_what_is_no_static_tree_is_refused(paths: list[list[int]], message: str) -> None:
    """The message says which path is wrong and what is allowed."""
    with pytest.raises(InvalidArgumentError, match=message):
        TreePaths(paths)


def test_an_unknown_policy_is_refused_with_the_names_there_are() -> None:
    """The message names field, value and every policy."""
    with pytest.raises(
        InvalidArgumentError, match=r"speculation\.policy = medusa: must be one of eagle2, eagle1"
    ):
        tree_policy_by_name("medusa", TreeShape())


@pytest.mark.parametrize("threshold", [0.1, -100.1, math.nan, math.inf])
def test_a_threshold_outside_its_range_is_refused(threshold: float) -> None:
    """The message names field, value and range."""
    with pytest.raises(InvalidArgumentError, match=r"min_frontier_logprob = .*\[-100, 0\]"):
        tree_policy_by_name("dynamic_depth", TreeShape(), min_frontier_logprob=threshold)


def replay(
    pool: NaivePool, expanded: list[list[int]], rule: NaiveFrontier, width: int
) -> list[list[int]]:
    """What the rule would have expanded, level by level, given the levels the pool holds."""
    again = NaivePool()
    again.candidates = pool.candidates
    again.newest = [index for index, one in enumerate(pool.candidates) if one.depth == 1]
    found: list[list[int]] = []
    for depth in range(2, len(expanded) + 2):
        found.append(rule(again, width) or [])
        again.newest = [i for i, one in enumerate(pool.candidates) if one.depth == depth]
    return found


def flat_level(rows: int, top_k: int) -> Level:
    """A level whose children are all equally likely."""
    tokens = np.tile(np.arange(top_k), (rows, 1))
    return Level(tokens, np.full((rows, top_k), -1.0, dtype=np.float32))
