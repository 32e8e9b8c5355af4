"""What a forward takes by its rows."""

import pytest

from arborist.core.cost_table import CostTable, RowCost
from arborist.core.errors import InvalidArgumentError


def test_a_time_lies_on_the_line_between_the_points_around_it() -> None:
    """Points come in any order."""
    table = CostTable([RowCost(16, 12.0), RowCost(1, 9.0), RowCost(32, 14.0)])

    assert table.ms(16) == 12.0
    assert table.ms(8.5) == pytest.approx(10.5)
    assert table.ms(24) == pytest.approx(13.0)


def test_fewer_rows_than_measured_take_the_first_time_and_more_take_proportionally_more() -> None:
    """Both ends."""
    table = CostTable([RowCost(4, 8.0), RowCost(64, 20.0)])

    assert table.ms(1) == 8.0
    assert table.ms(128) == pytest.approx(40.0)


def test_a_measurement_that_fell_is_taken_for_noise() -> None:
    """More rows are never less work."""
    table = CostTable([RowCost(1, 9.0), RowCost(8, 11.0), RowCost(16, 10.0), RowCost(32, 13.0)])

    assert [table.ms(rows) for rows in (1, 8, 16, 32)] == [9.0, 11.0, 11.0, 13.0]


@pytest.mark.parametrize(
    "points",
    [
        [],
        [RowCost(1, 0.0)],
        [RowCost(0, 1.0)],
        [RowCost(1, float("nan"))],
        [RowCost(1, float("inf"))],
        [RowCost(2, 1.0), RowCost(2, 2.0)],
        [RowCost(1 + rows, 1.0) for rows in range(33)],
    ],
)
def test_what_is_no_table_of_costs_is_refused(points) -> None:
    """It names the field."""
    with pytest.raises(InvalidArgumentError, match="costs"):
        CostTable(points)
