"""Tree policies: which nodes to expand and which candidates to verify."""

from __future__ import annotations

from typing import Protocol

from arborist.core.shape import TreeShape
from arborist.core.tree import DraftTree, IntArray, VerifyTree


class TreePolicy(Protocol):
    """Decides a round's tree; knows nothing of models, workers or transport."""

    @property
    def shape(self) -> TreeShape:
        """Returns the bounds of the tree."""
        ...

    def frontier(self, tree: DraftTree) -> IntArray | None:
        """Returns the nodes of the newest level to expand, or None to stop drafting."""
        ...

    def select(self, tree: DraftTree) -> VerifyTree:
        """Returns the tree to verify."""
        ...


class Eagle2Policy:
    """EAGLE-2's dynamic tree: expand the top_k of the newest level, rerank the whole pool."""

    def __init__(self, shape: TreeShape) -> None:
        self._shape = shape

    @property
    def shape(self) -> TreeShape:
        """Returns the bounds of the tree."""
        return self._shape

    def frontier(self, tree: DraftTree) -> IntArray | None:
        """Returns the top_k of the newest level, or None once `depth` levels exist."""
        if tree.num_levels >= self._shape.depth:
            return None
        return tree.frontier(self._shape.top_k)

    def select(self, tree: DraftTree) -> VerifyTree:
        """Returns the `num_draft_tokens` best candidates of the pool."""
        return tree.rerank(self._shape.num_draft_tokens)
