"""A whole pool as a draft worker grew it, to be checked and rebuilt by the controller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arborist.core.errors import InvalidArgumentError
from arborist.core.shape import MAX_DEPTH, MAX_TOP_K
from arborist.core.tree import DraftTree, IntArray, Level


@dataclass(frozen=True, slots=True)
class PoolLevel:
    """One level that the draft worker expanded by itself.

    Attributes:
        frontier: int64, what was expanded: indices inside the level before, best first.
        level: Their children, one row per expanded node.
        compute_ms: Milliseconds of choosing the frontier and of the forward it was part of.
    """

    frontier: IntArray
    level: Level
    compute_ms: float


@dataclass(frozen=True, slots=True)
class Pool:
    """Answer to an ExpandTree: levels 2, 3, ... of a round's tree."""

    levels: Sequence[PoolLevel]

    @property
    def compute_ms(self) -> list[float]:
        """Returns the milliseconds of every level."""
        return [one.compute_ms for one in self.levels]

    def tree(self, level: Level) -> DraftTree:
        """Grows the tree that has these levels below a level 1.

        Args:
            level: Level 1, one row.
        Raises:
            InvalidArgumentError: A frontier is not of the level before; names field and limit.
        """
        tree = DraftTree(level)
        if len(self.levels) >= MAX_DEPTH:
            raise InvalidArgumentError("pool.levels", len(self.levels), f"under {MAX_DEPTH}")
        for one in self.levels:
            _check_frontier(one.frontier, len(tree.newest_scores), len(one.level.tokens))
            tree.grow(one.frontier, one.level)
        return tree


def _check_frontier(frontier: IntArray, num_candidates: int, num_rows: int) -> None:
    count = len(frontier)
    if not 1 <= count <= MAX_TOP_K or count != num_rows:
        limit = f"{num_rows}, one per row of the level, in [1, {MAX_TOP_K}]"
        raise InvalidArgumentError("pool.rows", count, limit)
    rows = frontier.tolist()  # Few: Python checks them sooner than cold numpy code.
    lowest, highest = min(rows), max(rows)
    if lowest < 0 or highest >= num_candidates:
        worst = lowest if lowest < 0 else highest
        raise InvalidArgumentError("pool.rows", worst, f"in [0, {num_candidates})")
    if len(set(rows)) != count:
        raise InvalidArgumentError("pool.rows", "repeated", "distinct inside a level")
