"""How much longer rounds take than they would undisturbed."""

import pytest

from arborist.orchestrator.pace import Pace, Paces


def observe(paces: Paces, slowdown: float, *, drafted: bool, level: int) -> None:
    """Takes enough rounds to be believed."""
    for _ in range(10 * 2**level + 20):
        paces.observe(10.0 * slowdown, 10.0, drafted=drafted, level=level)


def test_the_last_rounds_count() -> None:
    """The older ones are forgotten."""
    pace = Pace(level=0)
    for _ in range(100):
        pace.observe(20.0, 10.0)
    for _ in range(100):
        pace.observe(15.0, 10.0)

    assert pace.slowdown == pytest.approx(1.5)


def test_a_long_round_weighs_as_much_as_it_takes() -> None:
    """Time over time: a mean of ratios would count a short round as much."""
    pace = Pace(level=0)
    for _ in range(8):
        pace.observe(10.0, 10.0)
        pace.observe(60.0, 30.0)

    assert pace.slowdown == pytest.approx(70 / 40)


def test_a_few_rounds_are_not_believed_nor_is_one_that_was_held_up() -> None:
    """More of them are needed where more sessions take part."""
    alone, busy = Pace(level=0), Pace(level=4)
    for _ in range(20):
        alone.observe(10.0, 10.0)
        busy.observe(10.0, 10.0)
    assert alone.is_known
    assert not busy.is_known

    alone.observe(60_000.0, 10.0)
    assert alone.slowdown < 1.5


def test_what_was_not_seen_is_taken_from_the_nearest_load_and_then_from_the_other_kind() -> None:
    """1 before anything was seen."""
    paces = Paces()
    assert paces.slowdown(drafted=True, level=2) == 1

    observe(paces, 3.0, drafted=False, level=4)
    assert paces.slowdown(drafted=True, level=2) == pytest.approx(3.0)

    observe(paces, 2.0, drafted=True, level=0)
    observe(paces, 1.5, drafted=True, level=6)
    assert paces.slowdown(drafted=True, level=1) == pytest.approx(2.0)
    assert paces.slowdown(drafted=True, level=5) == pytest.approx(1.5)
    assert paces.is_known(drafted=True, level=6)
    assert not paces.is_known(drafted=True, level=5)
