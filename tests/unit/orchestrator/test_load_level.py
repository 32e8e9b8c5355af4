"""Loads that are told apart."""

from arborist.orchestrator.load_level import LoadLevel


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
