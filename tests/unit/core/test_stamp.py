"""Stamps: new commands run once, repetitions are remembered, old ones change nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arborist.core.errors import StaleStampError
from arborist.core.stamp import Stamp, StampGuard


def test_a_repetition_gets_the_remembered_result() -> None:
    """The same stamp again returns what the first one gave, without running."""
    guard: StampGuard[str] = StampGuard(epoch=1)
    stamp = Stamp(1, 0, 0)
    assert guard.admit(stamp) is None
    guard.settle(stamp, "result")
    assert guard.admit(stamp) == "result"
    assert guard.admit(Stamp(1, 0, 1)) is None


@pytest.mark.parametrize("stale", [Stamp(1, 2, 2), Stamp(1, 1, 9), Stamp(0, 9, 9)])
def test_an_older_stamp_changes_nothing(stale: Stamp) -> None:
    """It is refused with both stamps named, and the newest can still be repeated."""
    guard: StampGuard[str] = StampGuard(epoch=1)
    newest = Stamp(1, 2, 3)
    guard.admit(newest)
    guard.settle(newest, "result")
    with pytest.raises(StaleStampError) as caught:
        guard.admit(stale)
    assert caught.value.metadata["last"] == "1/2/3"
    assert guard.last == newest
    assert guard.admit(newest) == "result"


def test_another_epoch_is_refused() -> None:
    """A newer incarnation is opened, not slipped in by a command."""
    guard: StampGuard[str] = StampGuard(epoch=1)
    with pytest.raises(StaleStampError):
        guard.admit(Stamp(2, 0, 0))


def test_a_command_that_failed_or_still_runs_is_not_run_again() -> None:
    """Without a result there is nothing to repeat."""
    guard: StampGuard[str] = StampGuard(epoch=1)
    guard.admit(Stamp(1, 0, 0))
    with pytest.raises(StaleStampError):
        guard.admit(Stamp(1, 0, 0))


def test_a_late_result_of_a_superseded_command_is_dropped() -> None:
    """Only the newest command's result is remembered."""
    guard: StampGuard[str] = StampGuard(epoch=1)
    old, new = Stamp(1, 0, 0), Stamp(1, 0, 1)
    guard.admit(old)
    guard.admit(new)
    guard.settle(old, "old")
    with pytest.raises(StaleStampError):
        guard.admit(new)
    guard.settle(new, "new")
    assert guard.admit(new) == "new"


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_a_command_runs_only_if_it_is_newer_than_all_before(
    sequence: list[tuple[int, int, int]],
) -> None:
    """Whatever arrives in whatever order, runs are strictly increasing and of the open epoch."""
    guard: StampGuard[int] = StampGuard(epoch=1)
    ran: list[Stamp] = []
    for number, parts in enumerate(sequence):
        stamp = Stamp(*parts)
        try:
            remembered = guard.admit(stamp)
        except StaleStampError:
            continue
        if remembered is None:
            ran.append(stamp)
            guard.settle(stamp, number)
        else:
            assert stamp == ran[-1]
    assert ran == sorted(set(ran))
    assert all(stamp.epoch == 1 for stamp in ran)
