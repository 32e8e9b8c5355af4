"""Tree policies: which nodes to expand and which candidates to verify."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from arborist.core.shape import TreeShape
from arborist.core.tree import DraftTree, IntArray, VerifyTree, best_first


class TreePolicy(Protocol):
    """Decides a round's tree; knows nothing of models, workers or transport.

    A policy never changes the output, only how many rounds it takes. It keeps no state between
    rounds, so one object may serve many sessions.
    """

    @property
    def shape(self) -> TreeShape:
        """Returns the bounds of the tree; every draft forward returns shape.top_k children."""
        ...

    def frontier(self, tree: DraftTree) -> IntArray | None:
        """Returns the nodes of the newest level to expand, or None to stop drafting.

        Returns:
            int64, indices inside the newest level, distinct, between 1 and 32 of them.
        """
        ...

    def select(self, tree: DraftTree) -> VerifyTree:
        """Returns the tree to verify."""
        ...


class Eagle2Policy:
    """EAGLE-2's dynamic tree: expand the top_k of the newest level, rerank the whole pool.

    The switches are the paper's ablations (EAGLE-2, arXiv 2406.16858, Table 3).
    """

    def __init__(self, shape: TreeShape, *, value: bool = True, rerank: bool = True) -> None:
        """Prepares the policy.

        Args:
            shape: Bounds of the tree.
            value: Choose the frontier by cumulative log-prob (EAGLE-2 §4.1); off = by the node's
                own log-prob given its parent.
            rerank: Verify the best of the whole pool (EAGLE-2 §4.2); off = the nodes chosen for
                expansion, in that order, the first num_draft_tokens.
        """
        self._shape = shape
        self._value = value
        self._rerank = rerank

    @property
    def shape(self) -> TreeShape:
        """Returns the bounds of the tree."""
        return self._shape

    def resized(self, shape: TreeShape) -> Eagle2Policy:
        """Returns the same policy with other bounds."""
        return Eagle2Policy(shape, value=self._value, rerank=self._rerank)

    @property
    def follows_value(self) -> bool:
        """Returns whether the frontier goes by cumulative log-prob."""
        return self._value

    @property
    def reranks(self) -> bool:
        """Returns whether the best of the whole pool are verified."""
        return self._rerank

    def frontier(self, tree: DraftTree) -> IntArray | None:
        """Returns the top_k of the newest level, or None once `depth` levels exist.

        Without rerank also None once the chosen nodes fill the tree: more could not be verified.
        """
        if tree.num_levels >= self._shape.depth:
            return None
        chosen = self._chosen(tree)
        num_chosen = len(tree.expanded) + len(chosen)
        if not self._rerank and num_chosen >= self._shape.num_draft_tokens:
            return None
        return chosen

    def select(self, tree: DraftTree) -> VerifyTree:
        """Returns the `num_draft_tokens` best candidates of the pool, or the first chosen ones."""
        if self._rerank:
            return tree.rerank(self._shape.num_draft_tokens)
        # A chosen node's parent was chosen one level before: any beginning of this is a tree.
        chosen = np.concatenate((tree.expanded, self._chosen(tree) + tree.newest_offset))
        return tree.select(np.sort(chosen[: self._shape.num_draft_tokens]))

    def _chosen(self, tree: DraftTree) -> IntArray:
        if self._value:
            return tree.frontier(self._shape.top_k)
        return best_first(tree.newest_logprobs)[: self._shape.top_k]
