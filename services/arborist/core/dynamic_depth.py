"""Dynamic Depth Decoding: EAGLE-2 that stops drafting when its frontier is unlikely."""

from __future__ import annotations

import math

import numpy as np

from arborist.core.errors import InvalidArgumentError
from arborist.core.policy import Eagle2Policy
from arborist.core.policy_settings import DEFAULT_MIN_FRONTIER_LOGPROB, LOWEST_FRONTIER_LOGPROB
from arborist.core.shape import TreeShape
from arborist.core.tree import DraftTree, FloatArray, IntArray


class DynamicDepthPolicy(Eagle2Policy):
    """EAGLE-2 with the stop rule of arXiv 2409.00142, Algorithm 1, checked at every level.

    H = logsumexp of the frontier's cumulative log-probs is the log of the probability, as the draft
    sees it, that the next tokens lie on one of the frontier's paths. Below the threshold another
    draft forward is not worth its time. The paper checks at three depths only, because each
    check makes its GPU wait; here the scores are on the host after every level anyway.
    """

    def __init__(
        self, shape: TreeShape, min_frontier_logprob: float = DEFAULT_MIN_FRONTIER_LOGPROB
    ) -> None:
        """Prepares the policy.

        Args:
            shape: Bounds of the tree; `depth` is the most levels.
            min_frontier_logprob: Stop when H is lower, in [-100, 0].
        Raises:
            InvalidArgumentError: The threshold is out of its range.
        """
        super().__init__(shape)
        if not LOWEST_FRONTIER_LOGPROB <= min_frontier_logprob <= 0:  # NaN is refused too.
            raise InvalidArgumentError(
                "speculation.min_frontier_logprob",
                min_frontier_logprob,
                f"a number in [{LOWEST_FRONTIER_LOGPROB:g}, 0]",
            )
        self._min_frontier_logprob = min_frontier_logprob

    def frontier(self, tree: DraftTree) -> IntArray | None:
        """Returns the top_k of the newest level, or None when they are too unlikely together."""
        frontier = super().frontier(tree)
        if frontier is None:
            return None
        likely = _log_sum_exp(tree.newest_scores[frontier]) >= self._min_frontier_logprob
        return frontier if likely else None


def _log_sum_exp(scores: FloatArray) -> float:
    highest = float(scores.max())
    return highest + math.log(float(np.exp(scores.astype(np.float64) - highest).sum()))
