"""Incarnations of sessions, and what may be in flight in each."""

from __future__ import annotations

import pytest

from arborist.common.command import Command, OpenSession, RunWork
from arborist.common.job import Job
from arborist.common.session_table import Session, SessionTable
from arborist.common.worker_limits import WorkerLimits
from arborist.core.errors import (
    InvalidArgumentError,
    ResourceExhaustedError,
    StaleStampError,
    UnknownSessionError,
)
from arborist.core.stamp import Stamp

KEY = ("controller", "session")
LIMITS = WorkerLimits()


class Nobody:
    """Waits for nothing."""

    def answer(self, command_id: int, job: Job) -> None:
        """Does nothing."""


def session(epoch: int = 1) -> Session:
    """Returns an incarnation whose Open was answered."""
    opening = Job(Command(1, KEY, "", OpenSession(epoch, None)), Nobody())
    opened = Session(KEY, epoch, opening)
    opened.settle(opening)
    return opened


def job(tree_id: int, step: int = 0, epoch: int = 1, bulk: bool = False) -> Job:
    """Returns a stamped command."""
    work = RunWork(Stamp(epoch, tree_id, step), None, 1, "verify", bulk)
    return Job(Command(1, KEY, "", work), Nobody())


def test_the_last_command_is_found_again_and_older_ones_are_stale() -> None:
    """Only the newest stamp has a remembered job, running or answered."""
    one, first, second = session(), job(1), job(2)
    assert one.find_repeated(Stamp(1, 1, 0)) is None
    one.admit(first, LIMITS)
    assert one.find_repeated(Stamp(1, 1, 0)) is first
    one.settle(first)
    one.admit(second, LIMITS)

    assert one.find_repeated(Stamp(1, 2, 0)) is second
    for stamp in (Stamp(1, 1, 0), Stamp(2, 3, 0), Stamp(0, 9, 9)):
        with pytest.raises(StaleStampError):
            one.find_repeated(stamp)


def test_a_refused_command_leaves_its_stamp_unused() -> None:
    """Over the share in flight it is RESOURCE_EXHAUSTED, and runs once there is room."""
    one, first, second = session(), job(1), job(2)
    one.admit(first, LIMITS)
    with pytest.raises(ResourceExhaustedError):
        one.admit(second, LIMITS)
    one.settle(first)

    assert one.find_repeated(Stamp(1, 2, 0)) is None
    one.admit(second, LIMITS)


def test_what_found_no_room_in_the_engine_runs_again() -> None:
    """An answer of RESOURCE_EXHAUSTED is no result to repeat; the second try's result is."""
    one, first, again = session(), job(1), job(1)
    one.admit(first, LIMITS)
    first.answer, first.done = ResourceExhaustedError("full"), True
    one.settle(first)
    assert one.find_repeated(Stamp(1, 1, 0)) is None
    one.admit(again, LIMITS)

    assert one.find_repeated(Stamp(1, 1, 0)) is again


def test_chunks_and_rounds_have_shares_of_their_own() -> None:
    """Two chunks and one round may be in flight together."""
    one = session()
    one.admit(job(0, 0, bulk=True), LIMITS)
    one.admit(job(0, 1, bulk=True), LIMITS)
    one.admit(job(1), LIMITS)
    with pytest.raises(ResourceExhaustedError):
        one.admit(job(2, bulk=True), LIMITS)


def test_a_newer_incarnation_drops_what_the_older_one_has_in_flight() -> None:
    """Its commands are not worth running, and removing it later harms nobody."""
    table, old, new, running = SessionTable(), session(1), session(2), job(1)
    table.put(old)
    old.admit(running, LIMITS)
    table.put(new)

    assert running.dropped
    assert not table.remove(old)
    assert table.get(KEY) is new
    assert table.remove(new)
    assert len(table) == 0
    with pytest.raises(UnknownSessionError):
        table.get(KEY)


def following(tree_id: int, step: int = 1) -> Job:
    """Returns the second command of a pair."""
    work = RunWork(Stamp(1, tree_id, step), None, 1, "expand_tree", bulk=False, follows=True)
    return Job(Command(1, KEY, "", work), Nobody())


def test_a_pair_is_one_round_command_in_flight() -> None:
    """The second of a pair needs no answer to the first; a third command waits for both."""
    one, first, second = session(), job(1), following(1)
    one.admit(first, LIMITS)
    one.admit(second, LIMITS)
    for more in (following(1, step=2), job(2)):
        with pytest.raises(ResourceExhaustedError):
            one.admit(more, LIMITS)
    one.settle(first)
    with pytest.raises(ResourceExhaustedError):
        one.admit(job(2), LIMITS)
    one.settle(second)
    one.admit(job(2), LIMITS)


def test_both_of_a_pair_may_be_repeated_until_the_next_command() -> None:
    """A lost stream may have lost both answers."""
    one, first, second = session(), job(1), following(1)
    one.admit(first, LIMITS)
    one.admit(second, LIMITS)
    assert one.find_repeated(Stamp(1, 1, 0)) is first
    assert one.find_repeated(Stamp(1, 1, 1)) is second
    one.settle(first)
    one.settle(second)
    one.admit(job(2), LIMITS)
    for step in (0, 1):
        with pytest.raises(StaleStampError):
            one.find_repeated(Stamp(1, 1, step))


def test_the_second_of_a_pair_needs_the_first() -> None:
    """After another command, or a first one that was refused, it is an error that says so."""
    one = session()
    one.admit(job(1), LIMITS)
    for alone in (following(2), following(1, step=2)):
        with pytest.raises(InvalidArgumentError, match=r"stamp\.step = .*1/0"):
            one.admit(alone, LIMITS)
    assert one.find_repeated(Stamp(1, 2, 0)) is None
