"""One ExpandTree under way: the pool so far, and what the policy expands next."""

from __future__ import annotations

from arborist.core.engine import Expand, ExpandTree
from arborist.core.errors import InvalidArgumentError
from arborist.core.pool import Pool, PoolLevel
from arborist.core.pool_policies import pool_policy
from arborist.core.tree import DraftTree, IntArray, Level


class TreeGrowth:
    """Grows a pool by the rule the controller would follow, one level at a time."""

    def __init__(self, work: ExpandTree, level: Level) -> None:
        """Begins with level 1.

        Args:
            work: What was asked for.
            level: Level 1 of the session's tree, one row.
        Raises:
            InvalidArgumentError: Unknown policy, a size out of bounds, or another top_k than
                level 1 has.
        """
        self._policy = pool_policy(work.policy, work.depth, work.top_k)
        width = level.tokens.shape[1]
        if work.top_k != width:
            raise InvalidArgumentError("expand_tree.top_k", work.top_k, f"level 1's, {width}")
        self._work = work
        self._tree = DraftTree(level)
        self._levels: list[PoolLevel] = []
        self._frontier: IntArray | None = self._policy.frontier(self._tree)

    @property
    def next_work(self) -> Expand | None:
        """Returns what to run next; None = the pool is whole."""
        if self._frontier is None:
            return None
        return Expand(self._work.session, self._frontier.tolist(), self._work.top_k)

    def grow(self, level: Level, compute_ms: float) -> None:
        """Takes the answer to `next_work`.

        Args:
            level: One row per expanded node.
            compute_ms: Milliseconds since the level before.
        """
        if self._frontier is None:
            raise RuntimeError("the pool is whole already")
        self._tree.grow(self._frontier, level)
        self._levels.append(PoolLevel(self._frontier, level, compute_ms))
        self._frontier = self._policy.frontier(self._tree)

    @property
    def pool(self) -> Pool:
        """Returns the levels so far."""
        return Pool(self._levels)
