"""What a forward takes against its rows, as measured."""

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
    """Milliseconds of a forward by its rows: linear between points, never falling."""

    def __init__(self, points: Iterable[RowCost]) -> None:
        """Takes points in any order.

        Args:
            points: At least one, at most 32, with different rows.
        Raises:
            InvalidArgumentError: Too many or too few points, or one that is no cost.
        """
        ordered = sorted(points, key=lambda one: one.rows)
        if not 1 <= len(ordered) <= MAX_COST_POINTS:
            raise InvalidArgumentError("costs", len(ordered), f"1..{MAX_COST_POINTS} points")
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

    def ms(self, rows: float) -> float:
        """Returns the milliseconds of a forward.

        Args:
            rows: Over 0; below the first point the first point's time counts, beyond the last
                one the time grows in proportion to the rows.
        """
        first, last = self._rows[0], self._rows[-1]
        if rows <= first:
            return self._ms[0]
        if rows >= last:
            return self._ms[-1] * rows / last
        right = bisect_left(self._rows, rows)
        low, high = self._rows[right - 1], self._rows[right]
        share = (rows - low) / (high - low)
        return self._ms[right - 1] + share * (self._ms[right] - self._ms[right - 1])
