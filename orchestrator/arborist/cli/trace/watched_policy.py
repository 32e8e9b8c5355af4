"""A policy that remembers which candidates it had expanded."""

from __future__ import annotations

from arborist.core.policy import TreePolicy
from arborist.core.shape import TreeShape
from arborist.core.tree import DraftTree, IntArray, VerifyTree


class WatchedPolicy:
    """Passes every question on to a policy and keeps its answers; implements `TreePolicy`.

    The decode loop asks its policy about every level, so this is where a round's drafting shows
    without the loop knowing that anybody looks.
    """

    def __init__(self, policy: TreePolicy) -> None:
        """Watches a policy.

        Args:
            policy: Decides.
        """
        self._policy = policy
        self._frontiers: list[list[int]] = []
        self._expanded: list[list[int]] = []

    @property
    def shape(self) -> TreeShape:
        """Returns the bounds of the tree."""
        return self._policy.shape

    @property
    def expanded(self) -> list[list[int]]:
        """Returns the best candidates of every level from the second on, of the latest tree.

        Indices inside the level (row · top_k + rank), best first. All lists but the last are what
        was expanded; the last level is not expanded, its list says what would have been next.
        The official code records the same lists; level 1 has none, because its children come
        best first already.
        """
        return self._expanded

    def frontier(self, tree: DraftTree) -> IntArray | None:
        """Returns the policy's frontier."""
        if tree.num_levels == 1:
            self._frontiers = []
        frontier = self._policy.frontier(tree)
        if frontier is not None:
            self._frontiers.append(frontier.tolist())
        return frontier

    def select(self, tree: DraftTree) -> VerifyTree:
        """Returns the policy's tree."""
        selected = self._policy.select(tree)
        last = tree.frontier(self._policy.shape.top_k).tolist()
        self._expanded = [*self._frontiers, last][1:]
        return selected
