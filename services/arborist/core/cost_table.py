"""What a forward takes against its rows and sessions, as measured."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from arborist.core.errors import InvalidArgumentError

MAX_COST_POINTS = 32


@dataclass(frozen=True, slots=True)
class RowCost:
    """One measured point.

    Attributes:
        rows: Tokens and nodes of a forward, at least 1.
        ms: Milliseconds of it, over 0.
    """

    rows: float
    ms: float


class CostTable:
    """Milliseconds of a forward by its rows: linear between points, never falling.

    Every session beyond the first adds the same time to it.
    """

    def __init__(self, points: Iterable[RowCost], session_ms: float = 0.0) -> None:
        """Takes points in any order.

        Args:
            points: Of one session's forwards: at least one, at most 32, with different rows.
            session_ms: Milliseconds that every further session adds, 0 or more.
        Raises:
            InvalidArgumentError: Too many or too few points, or one that is no cost.
        """
        ordered = sorted(points, key=lambda one: one.rows)
        if not 1 <= len(ordered) <= MAX_COST_POINTS:
            raise InvalidArgumentError("costs", len(ordered), f"1..{MAX_COST_POINTS} points")
        if not 0 <= session_ms < float("inf"):
            raise InvalidArgumentError("costs.session_ms", session_ms, "0 ms or more")
        self._session_ms = session_ms
        self._rows: list[float] = []
        self._ms: list[float] = []
        highest = 0.0
        for one in ordered:
            if not (one.rows >= 1 and 0 < one.ms < float("inf")):
                raise InvalidArgumentError(
                    "costs", f"{one.rows:g} rows, {one.ms:g} ms", "rows >= 1, a time over 0 ms"
                )
            if self._rows and one.rows == self._rows[-1]:
                raise InvalidArgumentError("costs.rows", f"{one.rows:g} twice", "named once")
            # A measurement that fell is noise: more rows are never less work.
            highest = max(highest, one.ms)
            self._rows.append(one.rows)
            self._ms.append(highest)

    def ms(self, rows: float, num_sessions: int = 1) -> float:
        """Returns the milliseconds of a forward.

        Args:
            rows: Over 0; below the first point the first point's time counts, beyond the last
                one the time grows in proportion to the rows.
            num_sessions: Sessions that share it, at least 1.
        """
        return self._rows_ms(rows) + (num_sessions - 1) * self._session_ms

    def _rows_ms(self, rows: float) -> float:
        first, last = self._rows[0], self._rows[-1]
        if rows <= first:
            return self._ms[0]
        if rows >= last:
            return self._ms[-1] * rows / last
        right = bisect_left(self._rows, rows)
        low, high = self._rows[right - 1], self._rows[right]
        share = (rows - low) / (high - low)
        return self._ms[right - 1] + share * (self._ms[right] - self._ms[right - 1])
