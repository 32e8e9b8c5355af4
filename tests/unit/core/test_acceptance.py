"""What trees of every size would have had accepted."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from arborist.core.acceptance import AcceptanceGrid, node_counts
from arborist.core.shape import TreeShape
from arborist.core.tree import VerifyTree, node_depths

LIMIT = TreeShape(4, 4, 12)


@st.composite
def verified_trees(draw: st.DrawFn) -> tuple[VerifyTree, list[int]]:
    """Draws a full tree, parents first, scores falling along paths, and an accepted path."""
    parents = [0]
    for node in range(2, 13):
        choices = [p for p in range(node) if node_depths(parents)[p] < LIMIT.depth]
        parents.append(draw(st.sampled_from(choices)))
    scores: list[float] = []
    for parent in parents:
        above = scores[parent - 1] if parent else 0.0
        scores.append(above - draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])))
    path: list[int] = []
    at = 0
    while children := [n for n, parent in enumerate(parents, start=1) if parent == at]:
        at = draw(st.sampled_from([0, *children]))
        if at == 0:
            break
        path.append(at)
    return VerifyTree(list(range(100, 112)), parents, scores, list(range(12))), path


def accepted_if_smaller(tree: VerifyTree, path: list[int], depth: int, nodes: int) -> int:
    """Reference: rerank the verified nodes to fewer, and walk."""
    order = sorted(range(1, 13), key=lambda n: (-tree.scores[n - 1], n))
    kept = set(order[:nodes])
    count = 0
    for node in path[:depth]:
        if node not in kept:
            break
        count += 1
    return count


@settings(deadline=None, max_examples=50)
@given(verified_trees())
def test_one_verified_tree_tells_what_every_smaller_one_would_have_had_accepted(case) -> None:
    """Equal to a reference that reranks and walks."""
    tree, path = case
    grid = AcceptanceGrid(LIMIT)

    for _ in range(150):
        grid.observe(tree, LIMIT.depth, path)

    for depth in range(1, LIMIT.depth + 1):
        for column, nodes in enumerate(node_counts(12)):
            expected = accepted_if_smaller(tree, path, depth, nodes)
            assert abs(grid.expected[depth - 1, column] - expected) < 0.02


def test_a_small_tree_tells_nothing_of_larger_ones() -> None:
    """Deeper or wider ones keep what was believed: it is only less that was accepted."""
    grid = AcceptanceGrid(LIMIT)
    before = grid.expected.copy()

    grid.observe(VerifyTree([7, 8], [0, 1], [-0.1, -0.2], [0, 4]), 2, [])

    assert np.allclose(grid.expected[3:, grid.nodes.index(5) :], before[3:, grid.nodes.index(5) :])
    assert grid.expected[1, grid.nodes.index(2)] < before[1, grid.nodes.index(2)]


def test_a_round_without_a_tree_teaches_nothing() -> None:
    """The root alone has nothing to accept."""
    grid = AcceptanceGrid(LIMIT)
    before = grid.expected.copy()

    grid.observe(VerifyTree([], [], [], []), 0, [])

    assert (grid.expected == before).all()


def test_a_copy_learns_alone() -> None:
    """A session begins with what all know."""
    grid = AcceptanceGrid(LIMIT)
    twin = grid.copy()
    before = grid.expected.copy()

    twin.observe(VerifyTree([7], [0], [-0.1], [0]), 1, [1])

    assert (grid.expected == before).all()
    assert not np.array_equal(twin.expected, before)


def test_numbers_of_nodes_rise_to_the_most_allowed() -> None:
    """From one node on."""
    for most in (1, 2, 15, 60, 256):
        counts = node_counts(most)
        assert counts[0] == 1
        assert counts[-1] == most
        assert all(low < high for low, high in pairwise(counts))


def test_a_larger_tree_is_believed_to_have_at_least_as_much_accepted() -> None:
    """It holds the smaller one."""
    grid = AcceptanceGrid(LIMIT)
    for _ in range(100):
        grid.observe(VerifyTree([7, 8], [0, 1], [-0.1, -0.2], [0, 4]), 2, [1, 2])

    assert grid.accepted(TreeShape(2, 4, 2)) > 1.9
    assert grid.accepted(TreeShape(4, 4, 12)) >= grid.accepted(TreeShape(2, 4, 2))
