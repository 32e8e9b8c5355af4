"""How much longer rounds take than they would undisturbed."""

import random

import pytest

from arborist.orchestrator.pace import Pace, Paces


def observe(paces: Paces, slowdown: float, *, drafted: bool, level: int) -> None:
    """Takes enough rounds to be believed."""
    for _ in range(30):
        paces.at(drafted=drafted, level=level).observe(10.0 * slowdown, 10.0)


def test_the_last_rounds_count() -> None:
    """The older ones are forgotten."""
    pace = Pace()
    for _ in range(100):
        pace.observe(20.0, 10.0)
    for _ in range(100):
        pace.observe(15.0, 10.0)

    assert pace.slowdown == pytest.approx(1.5)


@pytest.mark.parametrize("prompts", [0, 1, 6])
def test_what_prompts_take_is_told_apart_from_what_rounds_take(prompts: int) -> None:
    """However many rounds they share, and whatever they really take."""
    pace, rng = Pace(), random.Random(4)
    for number in range(96):
        prompt_ms = 8.0 + rng.random() if number % 12 < prompts else 0.0
        pace.observe(1.4 * 20.0 + 2.5 * prompt_ms + rng.random() - 0.5, 20.0, prompt_ms)

    assert pace.slowdown == pytest.approx(1.4, rel=0.03)


def test_a_few_rounds_are_not_believed_nor_is_one_that_was_held_up() -> None:
    """Sessions share their rounds' forwards."""
    pace = Pace()
    for _ in range(8):
        pace.observe(10.0, 10.0)
    assert not pace.is_known

    for _ in range(12):
        pace.observe(10.0, 10.0)
    pace.observe(60_000.0, 10.0)
    assert pace.is_known
    assert pace.slowdown < 1.5


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
    assert paces.at(drafted=True, level=6).is_known
    assert not paces.at(drafted=True, level=5).is_known
