"""Loads that are told apart."""

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


def test_of_many_sessions_about_four_tell_of_their_rounds() -> None:
    """Each of few does."""
    for num_sessions, least, most in ((1, 1, 1), (4, 4, 4), (16, 3, 6), (64, 3, 6), (256, 3, 6)):
        assert least <= num_sessions / witness_stride(num_sessions) <= most
        level = LoadLevel()
        level.follow(num_sessions)
        assert level.witnesses == min(num_sessions, 4)
