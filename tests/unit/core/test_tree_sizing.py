"""Which tree pays under a load."""

import pytest

from arborist.core.acceptance import AcceptanceGrid
from arborist.core.cost_table import CostTable, RowCost
from arborist.core.shape import TreeShape
from arborist.core.tree import VerifyTree
from arborist.core.tree_sizing import Load, best_tree, drafted_ms, plain_ms, root_alone

LIMIT = TreeShape(3, 2, 6)
FULL_TREE = VerifyTree(
    [1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 3, 3], [-0.1, -2.0, -0.2, -3.0, -0.3, -3.0], list(range(6))
)
# As on an accelerator: many rows cost what one costs, up to a point.
FLAT = CostTable([RowCost(1, 10.0), RowCost(64, 12.0), RowCost(256, 48.0)])
# As when compute is used up: every row costs alike.
STEEP = CostTable([RowCost(1, 1.0), RowCost(256, 256.0)])
CHEAP = CostTable([RowCost(1, 0.2), RowCost(256, 1.0)])


def learned(accepted: list[int], rounds: int = 200) -> AcceptanceGrid:
    """Returns a grid that has seen the full tree with this accepted path."""
    grid = AcceptanceGrid(LIMIT)
    for _ in range(rounds):
        grid.observe(FULL_TREE, 3, accepted)
    return grid


def load(sessions: int, verify: CostTable, draft: CostTable = CHEAP, slower: float = 1.0) -> Load:
    """Returns a load whose rounds take so many times what forwards and trips would."""
    return Load(sessions, verify, draft, slower, slower)


def drafts(grid: AcceptanceGrid, at: Load) -> bool:
    """Returns whether some tree promises more than the root alone."""
    return best_tree(LIMIT, grid, at, None).tokens_per_ms > root_alone(at).tokens_per_ms


def test_a_good_draft_gets_a_tree_as_deep_as_its_path() -> None:
    """And no node more, where those cost time."""
    costs = CostTable([RowCost(1, 10.0), RowCost(4, 10.0), RowCost(7, 15.0)])

    size = best_tree(LIMIT, learned([1, 3, 5]), load(1, costs), None)

    assert size.shape is not None
    assert size.shape.depth == 3
    # Nodes 1, 3 and 5 are the best three: more are never accepted.
    assert size.shape.num_draft_tokens == 3


def test_a_draft_that_is_never_right_gets_the_root_alone() -> None:
    """Drafting would only cost."""
    assert not drafts(learned([]), load(1, FLAT))


def test_a_full_target_gets_the_root_alone_although_the_draft_is_often_right() -> None:
    """Every row takes time from another session."""
    grid = AcceptanceGrid(LIMIT)
    for number in range(400):
        grid.observe(FULL_TREE, 3, [1] if number % 2 else [])

    assert drafts(grid, load(1, FLAT))
    assert not drafts(grid, load(200, STEEP, STEEP))


def test_rounds_with_a_draft_that_take_longer_than_forwards_say_speak_against_it() -> None:
    """What is measured of them counts, not what the tables promise."""
    grid = learned([1, 3, 5])

    assert drafts(grid, Load(8, FLAT, CHEAP, drafted_slowdown=1.0, plain_slowdown=1.0))
    assert not drafts(grid, Load(8, FLAT, CHEAP, drafted_slowdown=5.0, plain_slowdown=1.0))


def test_sessions_that_cost_time_beside_their_rows_are_counted() -> None:
    """Attention and bookkeeping of each."""
    dear = CostTable([RowCost(1, 10.0), RowCost(64, 12.0)], session_ms=2.0)

    assert dear.ms(8, 8) == FLAT.ms(8) + 14.0
    assert plain_ms(load(8, dear)) == plain_ms(load(8, FLAT)) + 14.0


def test_the_present_size_stays_unless_another_is_clearly_better() -> None:
    """No flutter between equals."""
    grid = learned([1, 3, 5])
    present = TreeShape(3, 2, 4)

    # Three nodes are a little better than four, and six clearly worse.
    costs = CostTable([RowCost(4, 100.0), RowCost(5, 101.0), RowCost(7, 150.0)])
    size = best_tree(LIMIT, grid, load(1, costs), present)

    assert size.shape == present
    assert size.tokens_per_ms > 0


def test_the_largest_tree_is_taken_unless_another_is_clearly_better() -> None:
    """What is promised is known to about a tenth; nobody shall be much slower than with it."""
    costs = CostTable([RowCost(1, 100.0), RowCost(9, 101.0)])

    for present in (TreeShape(3, 2, 4), None):
        assert best_tree(LIMIT, learned([1, 3, 5]), load(1, costs), present).shape == LIMIT


def test_a_present_size_that_is_allowed_no_more_gives_way() -> None:
    """The limit may be another request's."""
    size = best_tree(LIMIT, learned([1]), load(1, FLAT), TreeShape(16, 2, 200))

    assert size.shape is not None
    assert size.shape.depth <= LIMIT.depth


def test_the_times_are_those_of_every_sessions_rows() -> None:
    """One forward each for all of them."""
    shape = TreeShape(3, 2, 5)

    trips = plain_ms(load(4, STEEP)) - STEEP.ms(4)

    assert trips > 0
    assert drafted_ms(load(4, STEEP, CHEAP), shape, 1.0) == pytest.approx(
        CHEAP.ms(8) + 2 * CHEAP.ms(8) + STEEP.ms(24) + 2 * trips
    )
