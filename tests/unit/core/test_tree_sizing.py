"""Which tree pays under a load."""

from arborist.core.acceptance import AcceptanceGrid
from arborist.core.cost_table import CostTable, RowCost
from arborist.core.shape import TreeShape
from arborist.core.tree import VerifyTree
from arborist.core.tree_sizing import Load, TreeSize, best_size, drafted_ms, plain_ms

LIMIT = TreeShape(3, 2, 6)
ROOT_ALONE = TreeSize(None, 0.0)
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


def load(sessions: int, verify: CostTable, draft: CostTable = CHEAP, rest: float = 0.0) -> Load:
    """Returns a load whose rounds cost alike with and without a draft."""
    return Load(sessions, verify, draft, rest, rest)


def test_an_idle_target_and_a_good_draft_get_a_tree_as_deep_as_its_path() -> None:
    """And no node more."""
    size = best_size(LIMIT, learned([1, 3, 5]), load(1, FLAT), ROOT_ALONE)

    assert size.shape is not None
    assert size.shape.depth == 3
    # Nodes 1, 3 and 5 are the best three: more are never accepted.
    assert size.shape.num_draft_tokens == 3


def test_a_draft_that_is_never_right_gets_the_root_alone() -> None:
    """Drafting would only cost."""
    size = best_size(LIMIT, learned([]), load(1, FLAT), ROOT_ALONE)

    assert size.shape is None


def test_a_full_target_gets_the_root_alone_although_the_draft_is_often_right() -> None:
    """Every row takes time from another session."""
    grid = AcceptanceGrid(LIMIT)
    for number in range(400):
        grid.observe(FULL_TREE, 3, [1] if number % 2 else [])

    assert best_size(LIMIT, grid, load(1, FLAT), ROOT_ALONE).shape is not None
    assert best_size(LIMIT, grid, load(200, STEEP, STEEP), ROOT_ALONE).shape is None


def test_what_a_round_costs_besides_forwards_speaks_for_longer_trees() -> None:
    """Fewer rounds, fewer times that cost."""
    grid = learned([1, 3, 5])

    without = best_size(LIMIT, grid, load(8, STEEP, STEEP), ROOT_ALONE)
    with_rest = best_size(LIMIT, grid, load(8, STEEP, STEEP, 20.0), ROOT_ALONE)

    assert without.shape is None
    assert with_rest.shape is not None


def test_the_present_size_stays_unless_another_is_clearly_better() -> None:
    """No flutter between equals."""
    grid = learned([1, 3, 5])
    present = TreeSize(TreeShape(3, 2, 4), 0.0)

    size = best_size(
        LIMIT, grid, load(1, CostTable([RowCost(1, 100.0), RowCost(9, 101.0)])), present
    )

    assert size.shape == present.shape
    assert size.tokens_per_ms > 0


def test_a_present_size_that_is_allowed_no_more_gives_way() -> None:
    """The limit may be another request's."""
    present = TreeSize(TreeShape(16, 2, 200), 1.0)

    size = best_size(LIMIT, learned([1]), load(1, FLAT), present)

    assert size.shape is None or size.shape.depth <= LIMIT.depth


def test_the_times_are_those_of_every_sessions_rows() -> None:
    """One forward each for all of them."""
    shape = TreeShape(3, 2, 5)

    assert plain_ms(load(4, STEEP)) == STEEP.ms(4)
    assert drafted_ms(load(4, STEEP, CHEAP), shape, 1.0) == (
        CHEAP.ms(8) + 2 * CHEAP.ms(8) + STEEP.ms(24)
    )
