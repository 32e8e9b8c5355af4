"""A worker's own measure of its forwards."""

import pytest

from arborist.common.forward_costs import ForwardCosts
from arborist.core.cost_table import CostTable, RowCost


def test_forwards_of_about_the_same_rows_share_a_point_that_follows_them() -> None:
    """Two buckets per doubling."""
    costs = ForwardCosts()
    costs.observe(16, 10.0)
    for _ in range(200):
        costs.observe(17, 12.0)

    (point,) = costs.points
    assert 16 <= point.rows <= 17
    assert abs(point.ms - 12.0) < 0.1


def test_a_machine_that_is_slower_for_one_size_is_so_for_all() -> None:
    """Sizes that nobody uses would look better than they are."""
    costs = ForwardCosts()
    for rows in (1, 8, 16, 64):
        costs.observe(rows, 10.0 + rows)
    for _ in range(300):
        costs.observe(16, 1.5 * 26.0)

    table = CostTable(costs.points)
    assert table.ms(16) == pytest.approx(1.5 * 26, rel=0.02)
    assert 1.3 * 18 < table.ms(8) < table.ms(16)
    assert 1.3 * 74 < table.ms(64) < 1.5 * 74


def test_the_first_forward_of_a_size_makes_no_other_size_look_cheap() -> None:
    """It also pays for what is new; what it was too slow by is not spread over the others."""
    costs = ForwardCosts()
    for rows in (1, 8, 16, 64):
        costs.observe(rows, 10.0 + rows)
    costs.observe(23, 20 * 33.0)
    for _ in range(500):
        costs.observe(23, 33.0)
        costs.observe(16, 26.0)

    table = CostTable(costs.points)
    assert table.ms(8) == pytest.approx(18.0, rel=0.2)
    assert table.ms(64) == pytest.approx(74.0, rel=0.2)


def test_one_forward_that_was_held_up_hardly_counts() -> None:
    """The machine did something else meanwhile."""
    costs = ForwardCosts()
    costs.observe(8, 10.0)
    costs.observe(8, 10_000.0)

    assert costs.points[0].ms < 12.0


def test_points_are_few_ascending_and_make_a_table() -> None:
    """Whatever sizes a busy day brings."""
    costs = ForwardCosts()
    for rows in range(1, 5000):
        costs.observe(rows, 5.0 + rows / 10)

    rows_seen = [one.rows for one in costs.points]
    assert rows_seen == sorted(set(rows_seen))
    assert len(costs.points) <= 32
    assert CostTable(costs.points).ms(1) == costs.points[0].ms


def test_what_sessions_add_is_told_from_what_rows_add() -> None:
    """Forwards of one session give the points; those of several, the time of each further one."""
    costs = ForwardCosts()
    for rows in (1, 16, 64):
        costs.observe(rows, 10.0 + rows / 4)
    for _ in range(100):
        costs.observe(16, 14.0 + 7 * 0.5, 8)
        costs.observe(64, 26.0 + 15 * 0.5, 16)

    assert [one.ms for one in costs.points] == [10.25, 14.0, 26.0]
    assert costs.session_ms == pytest.approx(0.5)


def test_what_is_no_measurement_is_left_out() -> None:
    """No rows, no time."""
    costs = ForwardCosts()
    for rows, ms in ((0, 1.0), (1, 0.0), (1, float("nan")), (1, float("inf"))):
        costs.observe(rows, ms)

    assert not costs.points
    costs.observe(1, 2.0)
    assert list(costs.points) == [RowCost(1.0, 2.0)]
