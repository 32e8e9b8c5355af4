"""How many drafted tokens a tree of a given size would have had accepted, from those verified."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from arborist.core.shape import TreeShape
from arborist.core.tree import VerifyTree

# Weight of the newest round once many were seen; about the last 100 rounds count: fewer are chance.
_WEIGHT = 0.01
# Chance that a level is accepted, for as long as nothing was verified; counts as one round.
_FIRST_GUESS = 0.6
_GROWTH = 1.4
# Rounds from which on what was seen counts for more than the guess.
_BELIEVED_ROUNDS = 16.0
# What a new session is told by the others counts as so many rounds of its own.
_KNOWN_ROUNDS = 40.0


class AcceptanceGrid:
    """Running mean of accepted tokens for every (depth, nodes) up to a shape.

    EAGLE-2's rerank keeps the best nodes of the pool (§4.2), so the tree of fewer nodes is the
    beginning of the larger one by score: one verified tree tells what every smaller one would
    have had accepted. Larger trees than the one verified learn nothing from it.
    """

    def __init__(self, limit: TreeShape) -> None:
        """Starts with a guess.

        Args:
            limit: Largest depth and number of nodes asked about.
        """
        self.limit = limit
        self.nodes = node_counts(limit.num_draft_tokens)
        depths = np.arange(1, limit.depth + 1)
        guess = np.cumsum(_FIRST_GUESS**depths)  # [D]
        fewer = np.minimum(1.0, np.array(self.nodes)[None, :] / (2.0 * depths[:, None]))  # [D, N]
        self._mean: npt.NDArray[np.float64] = guess[:, None] * fewer  # [D, N]
        self._keep_order()
        self._seen: npt.NDArray[np.float64] = np.ones_like(self._mean)
        self._depths = depths[:, None]  # [D, 1]
        self._sizes = np.array(self.nodes)[None, :]  # [1, N]

    @property
    def expected(self) -> npt.NDArray[np.float64]:
        """Returns the mean accepted count, shape (depth, len(nodes)); row d − 1 is depth d."""
        return self._mean

    @property
    def is_known(self) -> bool:
        """Returns whether enough was verified to choose by it."""
        return bool(self._seen.max() > _BELIEVED_ROUNDS)

    def accepted(self, shape: TreeShape) -> float:
        """Returns the mean accepted count of the largest known tree within a shape."""
        column = max(at for at, count in enumerate(self.nodes) if count <= shape.num_draft_tokens)
        return float(self._mean[min(shape.depth, self.limit.depth) - 1, column])

    def copy(self) -> AcceptanceGrid:
        """Returns a grid that goes its own way from here; what was seen counts as some rounds."""
        twin = AcceptanceGrid(self.limit)
        twin._mean = self._mean.copy()
        twin._seen = np.minimum(self._seen, _KNOWN_ROUNDS)
        return twin

    def observe(self, tree: VerifyTree, depth: int, accepted_nodes: Sequence[int]) -> None:
        """Learns from one verified tree.

        Args:
            tree: What was verified, with scores.
            depth: Levels that were drafted for it.
            accepted_nodes: Its accepted path, root excluded.
        """
        if not tree.tokens:
            return
        ranks = np.argsort(np.argsort(-np.array(tree.scores), kind="stable"))  # [n]
        accepted = np.zeros_like(self._mean)
        for step, node in enumerate(accepted_nodes, start=1):
            accepted += (self._depths >= step) & (self._sizes > ranks[node - 1])
        # What a larger tree would have had is unknown; a full one is the largest there is.
        told = (self._depths <= depth) & (self._sizes <= len(tree.tokens))
        weight = np.maximum(1.0 / (self._seen + 1.0), _WEIGHT)
        self._mean += np.where(told, weight * (accepted - self._mean), 0.0)
        self._seen += told
        self._keep_order()

    def _keep_order(self) -> None:
        """A larger tree holds the smaller one: it never has less accepted."""
        np.maximum.accumulate(self._mean, axis=0, out=self._mean)
        np.maximum.accumulate(self._mean, axis=1, out=self._mean)


def node_counts(most: int) -> list[int]:
    """Returns the numbers of nodes worth telling apart: 1, 2, 3, 4, 5, 7, 9, 12, ..., `most`."""
    counts = [1]
    while counts[-1] < most:
        counts.append(min(most, max(counts[-1] + 1, int(counts[-1] * _GROWTH))))
    return counts
