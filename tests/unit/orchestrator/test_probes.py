"""Larger trees than the present one, tried by single sessions."""

from arborist.core.acceptance import AcceptanceGrid
from arborist.core.cost_table import CostTable, RowCost
from arborist.core.shape import TreeShape
from arborist.core.tree_sizing import Load, TreeSize, root_alone, tree_size
from arborist.orchestrator.probes import Probes

LIMIT = TreeShape(4, 4, 16)
VERIFY = CostTable([RowCost(1, 10), RowCost(256, 60)])
LOAD = Load(16, VERIFY, CostTable([RowCost(1, 2), RowCost(256, 12)]))
GRID = AcceptanceGrid(LIMIT)


def tried(probes: Probes, present: TreeSize, rounds: int, lost_ms: float | None) -> list[TreeShape]:
    """Returns the trees tried in some rounds, of which each takes so long beyond its worth."""
    shapes = []
    for _ in range(rounds):
        probes.add(2.0)
        shape = probes.next_shape(LIMIT, present, GRID, LOAD, level=4)
        if shape is not None:
            shapes.append(shape)
            if lost_ms is not None:
                probes.observe(lost_ms, level=4)
    return shapes


def test_a_session_at_rest_tries_a_small_tree_often_and_the_whole_one_seldom() -> None:
    """What is accepted of the small one tells most of what is to be known."""
    shapes = tried(Probes(), root_alone(LOAD), 20_000, None)

    assert set(shapes) == {TreeShape(2, 4, 3), LIMIT}
    assert shapes.count(LIMIT) == len(shapes) // 4


def test_a_session_that_drafts_tries_a_tree_a_level_deeper() -> None:
    """With about twice the nodes, the largest tree at most."""
    small = tree_size(TreeShape(2, 4, 4), GRID, LOAD)
    shapes = tried(Probes(), small, 2000, None)

    assert set(shapes) == {TreeShape(3, 4, 9), LIMIT}


def test_there_is_nothing_larger_than_the_whole_tree() -> None:
    """Whatever is saved up."""
    assert tried(Probes(), tree_size(LIMIT, GRID, LOAD), 2000, None) == []


def test_what_they_really_take_makes_later_ones_rarer() -> None:
    """A draft's catching up is not known beforehand."""
    cheap = tried(Probes(), root_alone(LOAD), 20_000, 0.0)
    dear = tried(Probes(), root_alone(LOAD), 20_000, 500.0)

    assert 0 < len(dear) < len(cheap) / 2
