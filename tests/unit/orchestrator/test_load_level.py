"""Loads that are told apart."""

import pytest

from arborist.orchestrator.load_level import LoadLevel, witness_stride


def test_a_few_sessions_more_or_fewer_are_the_same_load() -> None:
    """Those who come and go would change it all the time."""
    level = LoadLevel()
    assert level.follow(16)
    assert level.value == 4

    for num_sessions in (11, 16, 14, 10, 26, 16):
        assert not level.follow(num_sessions)
    assert level.value == 4


def test_about_twice_or_half_as_many_are_another_load() -> None:
    """The nearest power of two, whatever it was before."""
    level = LoadLevel()
    for num_sessions, value in ((30, 5), (18, 4), (9, 3), (3, 2), (1, 0), (100, 7)):
        assert level.follow(num_sessions)
        assert level.value == value


@pytest.mark.parametrize("num_sessions", [1, 2, 3, 4, 5, 6, 15, 16, 64, 256])
def test_about_four_sessions_tell_while_something_is_found_out(num_sessions: int) -> None:
    """Each of few does."""
    told = num_sessions / witness_stride(num_sessions, calm=False)
    assert min(num_sessions, 3) <= told <= 6


@pytest.mark.parametrize("num_sessions", [1, 2, 3, 4, 5, 6, 15, 16, 64, 256])
def test_one_tells_otherwise(num_sessions: int) -> None:
    """As many rounds as one has."""
    assert 0.6 < num_sessions / witness_stride(num_sessions, calm=True) <= 1


@pytest.mark.parametrize("calm", [False, True])
def test_each_gets_its_turn(calm: bool) -> None:
    """Also where they ask in the same order, round by round."""
    for num_sessions in range(1, 100):
        stride = witness_stride(num_sessions, calm=calm)
        rounds = range(0, stride * num_sessions, stride)
        assert len({number % num_sessions for number in rounds}) == num_sessions


def test_a_level_has_four_witnesses_or_fewer() -> None:
    """A session alone is one."""
    level = LoadLevel()
    for num_sessions, witnesses in ((1, 1), (2, 2), (4, 4), (64, 4)):
        level.follow(num_sessions)
        assert level.witnesses == witnesses
