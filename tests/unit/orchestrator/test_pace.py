"""How much longer rounds take than they would undisturbed."""

import pytest

from arborist.orchestrator.pace import Pace, Paces


def observe(paces: Paces, slowdown: float, *, drafted: bool, num_sessions: int) -> None:
    """Takes enough rounds to be believed."""
    for _ in range(10 * num_sessions + 20):
        paces.observe(10.0 * slowdown, 10.0, drafted=drafted, num_sessions=num_sessions)


def test_the_last_rounds_count() -> None:
    """About so many of every session as two seconds bring."""
    pace = Pace()
    for _ in range(500):
        pace.observe(20.0, 10.0, 1)
    for _ in range(500):
        pace.observe(15.0, 10.0, 1)

    assert pace.slowdown == pytest.approx(1.5, abs=0.01)


def test_a_few_rounds_are_not_believed_nor_is_one_that_was_held_up() -> None:
    """More of them are needed where more sessions take part."""
    pace = Pace()
    for _ in range(20):
        pace.observe(10.0, 10.0, 16)
    assert pace.is_known(1)
    assert not pace.is_known(16)

    pace.observe(60_000.0, 10.0, 16)
    assert pace.slowdown < 1.5


def test_what_was_not_seen_is_taken_from_the_nearest_load_and_then_from_the_other_kind() -> None:
    """1 before anything was seen."""
    paces = Paces()
    assert paces.slowdown(drafted=True, num_sessions=4) == 1

    observe(paces, 3.0, drafted=False, num_sessions=16)
    assert paces.slowdown(drafted=True, num_sessions=4) == pytest.approx(3.0)

    observe(paces, 2.0, drafted=True, num_sessions=1)
    observe(paces, 1.5, drafted=True, num_sessions=64)
    assert paces.slowdown(drafted=True, num_sessions=2) == pytest.approx(2.0)
    assert paces.slowdown(drafted=True, num_sessions=30) == pytest.approx(1.5)

    paces.forget(drafted=True, num_sessions=64)
    assert paces.slowdown(drafted=True, num_sessions=64) == pytest.approx(2.0)
