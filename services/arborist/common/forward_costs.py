"""A worker's own measure of its forwards: time by rows, from warm-up on, kept up while serving."""

from __future__ import annotations

import math

from arborist.core.cost_table import CostTable, RowCost

# Two buckets per doubling: 1, 2, 3, 4, 6, 8, 11, 16, ... rows.
_BUCKETS_PER_DOUBLING = 2
_MAX_BUCKET = 31
# Weights of a new forward, for how fast the machine is and for what its rows take. What a machine
# takes changes slowly, what one forward takes is noise.
_SPEED_WEIGHT = 0.05
_ROWS_WEIGHT = 0.02
# What sessions add differs with what they do; it is to hold for all of it, and not to swing.
_SESSION_WEIGHT = 0.003
# A forward so much slower than its bucket was stopped by something else; it counts as this much.
_MAX_SURPRISE = 3.0
# The first one of its bucket, which also pays for what is new, counts as at most so many times
# what its neighbours let expect.
_MAX_FIRST_SURPRISE = 1.25


class ForwardCosts:
    """Undisturbed milliseconds per bucket of rows, and what every further session adds to them.

    Running means; at most 32 buckets. Forwards of one session, those of the warm-up among
    them, make the buckets, so that what several share can be told from rows. A machine that other
    work slows down is slower for all rows: if only those in use were thought to take longer, others
    would look better than they are.

    Not safe for threads: the compute thread owns it, others read `points`.
    """

    def __init__(self) -> None:
        """Starts without points."""
        self._buckets: dict[int, RowCost] = {}  # Times `_slowness`.
        self._slowness = 1.0
        self.points: tuple[RowCost, ...] = ()
        """What was measured so far, ascending; replaced as a whole, so any thread may read it."""
        self.session_ms = 0.0
        """Milliseconds that every further session adds to a forward."""
        self._table: CostTable | None = None
        self._num_shared = 0

    def observe(self, rows: int, ms: float, num_sessions: int = 1) -> None:
        """Adds one forward.

        Args:
            rows: Tokens and nodes in it, at least 1.
            ms: Its milliseconds.
            num_sessions: Sessions that shared it, at least 1.
        """
        if rows < 1 or not 0 < ms < math.inf:
            return
        if num_sessions == 1:
            self._observe_rows(rows, ms)
        elif self._table is not None:
            self._observe_sessions(self._table.ms(rows), ms, num_sessions - 1)

    def _observe_sessions(self, rows_ms: float, ms: float, num_further: int) -> None:
        """Takes what a forward took beyond its rows."""
        beyond_ms = max(0.0, ms - rows_ms) / num_further
        self._num_shared += 1
        weight = max(_SESSION_WEIGHT, 1.0 / self._num_shared)  # The first ones: their mean.
        self.session_ms += weight * (beyond_ms - self.session_ms)

    def _observe_rows(self, rows: int, ms: float) -> None:
        bucket = min(_MAX_BUCKET, round(_BUCKETS_PER_DOUBLING * math.log2(rows)))
        seen = self._buckets.get(bucket)
        if seen is None:
            if self._table is not None:
                ms = min(ms, _MAX_FIRST_SURPRISE * self._table.ms(rows))
            self._buckets[bucket] = RowCost(float(rows), ms / self._slowness)
        else:
            surprise = min(ms / (self._slowness * seen.ms), _MAX_SURPRISE)
            self._slowness *= 1.0 + _SPEED_WEIGHT * (surprise - 1.0)
            self._buckets[bucket] = RowCost(
                seen.rows + _ROWS_WEIGHT * (rows - seen.rows),
                seen.ms * (1.0 + _ROWS_WEIGHT * (surprise - 1.0)),
            )
        ordered = (self._buckets[key] for key in sorted(self._buckets))
        self.points = tuple(RowCost(one.rows, self._slowness * one.ms) for one in ordered)
        self._table = CostTable(self.points)
