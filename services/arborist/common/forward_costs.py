"""A worker's own measure of its forwards: time by rows, from warm-up on, kept up while serving."""

from __future__ import annotations

import math

from arborist.core.cost_table import RowCost

# Two buckets per doubling: 1, 2, 3, 4, 6, 8, 11, 16, ... rows.
_BUCKETS_PER_DOUBLING = 2
_MAX_BUCKET = 31
# Weight of a new forward; what a machine takes changes slowly, what one forward takes is noise.
_WEIGHT = 0.05
# A forward so much slower than its bucket was stopped by something else; it counts as this much.
_MAX_SURPRISE = 3.0


class ForwardCosts:
    """Running mean of rows and milliseconds per bucket of rows; at most 32 buckets.

    Not safe for threads: the compute thread owns it, others read `points`.
    """

    def __init__(self) -> None:
        """Starts without points."""
        self._buckets: dict[int, RowCost] = {}
        self.points: tuple[RowCost, ...] = ()
        """What was measured so far, ascending; replaced as a whole, so any thread may read it."""

    def observe(self, rows: int, ms: float) -> None:
        """Adds one forward.

        Args:
            rows: Tokens and nodes in it, at least 1.
            ms: Its milliseconds.
        """
        if rows < 1 or not 0 < ms < math.inf:
            return
        bucket = min(_MAX_BUCKET, round(_BUCKETS_PER_DOUBLING * math.log2(rows)))
        seen = self._buckets.get(bucket)
        if seen is None:
            self._buckets[bucket] = RowCost(float(rows), ms)
        else:
            ms = min(ms, _MAX_SURPRISE * seen.ms)
            self._buckets[bucket] = RowCost(
                seen.rows + _WEIGHT * (rows - seen.rows), seen.ms + _WEIGHT * (ms - seen.ms)
            )
        self.points = tuple(self._buckets[key] for key in sorted(self._buckets))
