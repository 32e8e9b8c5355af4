"""Policies whose tree has the same form in every round: EAGLE-1's static tree, and the chain."""

from __future__ import annotations

import numpy as np

from arborist.core.shape import TreeShape
from arborist.core.tree import DraftTree, IntArray, VerifyTree
from arborist.core.tree_paths import RankPath, TreePaths


class StaticTreePolicy:
    """EAGLE-1's static tree (arXiv 2401.15077): the same child ranks in every round.

    Only nodes with children are expanded, so the number of rows differs from level to level.
    """

    def __init__(self, paths: TreePaths) -> None:
        """Works out once what every round expands and keeps.

        Args:
            paths: Nodes of the tree.
        """
        self._shape = paths.shape
        self._frontiers: list[IntArray] = []  # By level, from level 1.
        self._pool_sizes: list[int] = []  # Candidates once the level is there.
        kept: list[int] = []
        row_of: dict[RankPath, int] = {
            (): 0
        }  # Row of each expanded node's children inside its level.
        offset = 0
        for depth in range(1, self._shape.depth + 1):
            place = {
                path: row_of[path[:-1]] * self._shape.top_k + path[-1]
                for path in paths.level(depth)
            }
            kept += [offset + index for index in place.values()]  # Ascending, as the paths are.
            offset += len(row_of) * self._shape.top_k
            self._pool_sizes.append(offset)
            expanded = sorted({path[:-1] for path in paths.level(depth + 1)})
            self._frontiers.append(np.array([place[path] for path in expanded], dtype=np.int64))
            row_of = {path: row for row, path in enumerate(expanded)}
        self._kept = np.array(kept, dtype=np.int64)

    @property
    def shape(self) -> TreeShape:
        """Returns the smallest bounds that hold the tree."""
        return self._shape

    def frontier(self, tree: DraftTree) -> IntArray | None:
        """Returns the newest level's nodes that have children, or None after the last level.

        Raises:
            ValueError: The draft returned another number of candidates than it was asked for.
        """
        self._check(tree)
        if tree.num_levels >= self._shape.depth:
            return None
        return self._frontiers[tree.num_levels - 1]

    def select(self, tree: DraftTree) -> VerifyTree:
        """Returns the nodes of the static tree.

        Raises:
            ValueError: The draft returned another number of candidates than it was asked for.
        """
        self._check(tree)
        return tree.select(self._kept)

    def _check(self, tree: DraftTree) -> None:
        expected = self._pool_sizes[tree.num_levels - 1]
        if len(tree) != expected:
            raise ValueError(f"the draft gave {len(tree)} candidates in place of {expected}")


class ChainPolicy(StaticTreePolicy):
    """One path: the draft's best token after its best token, as speculative decoding began."""

    def __init__(self, shape: TreeShape) -> None:
        """Prepares a chain as long as both depth and num_draft_tokens allow.

        Args:
            shape: Bounds of the tree; top_k does not matter.
        """
        length = min(shape.depth, shape.num_draft_tokens)
        super().__init__(TreePaths([(0,) * depth for depth in range(1, length + 1)]))
