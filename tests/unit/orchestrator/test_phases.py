"""Phases of a tree in one call: a level each, end to end, no more than the time that passed."""

import numpy as np
import pytest

from arborist.core.errors import DeadlineError
from arborist.core.pool import Pool, PoolLevel
from arborist.core.tree import Level
from arborist.orchestrator.links import Reply
from arborist.orchestrator.phases import PhaseTimer
from arborist.orchestrator.request_trace import NoTrace
from arborist.orchestrator.round import Round

MS = 1_000_000


class SetClock:
    """Says the times it was given, one after the other, in milliseconds."""

    def __init__(self, *times_ms: int) -> None:
        self._times_ms = list(times_ms)

    def now_ns(self) -> int:
        """Returns the next time."""
        return self._times_ms.pop(0) * MS


def level(rows: int) -> Level:
    """A level of one child per node."""
    tokens = np.arange(rows, dtype=np.int64).reshape(rows, 1)
    return Level(tokens, np.zeros((rows, 1), dtype=np.float32))


def pool(*compute_ms: float) -> Pool:
    """A chain with these times."""
    return Pool([PoolLevel(np.zeros(1, dtype=np.int64), level(1), one) for one in compute_ms])


def timed(extended: Reply[Level], grown: Reply[Pool]) -> Round:
    """A round of a pair sent at 100 ms and answered at 120 ms."""
    round_ = Round(0, 5, 1, 0, start_ns=100 * MS, end_ns=120 * MS)
    timer = PhaseTimer(round_, SetClock(100, 120), NoTrace())
    with timer.remote_tree(3, 1 + len(grown.value.levels)) as call:
        call.done_both(extended, grown)
    return round_


def test_levels_lie_end_to_end_before_the_answer() -> None:
    """What is left before them is the Extend; transport is all that nobody computed."""
    round_ = timed(Reply(level(1), 0.25, 4.0), Reply(pool(3.0, 5.0), 4.5, 8.0))
    found = [
        (one.name, one.start_ns // MS, one.end_ns // MS, one.compute_ms, one.rows, one.same_call)
        for one in round_.phases
    ]
    assert found == [
        ("draft.extend", 100, 112, 4.0, 3, False),
        ("draft.expand", 112, 115, 3.0, 1, False),
        ("draft.expand", 115, 120, 5.0, 1, True),
    ]
    assert round_.times.draft_compute_ms == pytest.approx(12.0)
    assert round_.times.transport_ms == pytest.approx(8.0)
    assert round_.times.controller_ms == pytest.approx(0.0)


def test_times_that_cannot_be_stay_inside_the_round() -> None:
    """A worker that claims more than passed moves no phase before its command."""
    round_ = timed(Reply(level(1), 0.0, 1.0), Reply(pool(500.0, 5.0), 0.0, 505.0))
    assert all(one.start_ns >= round_.start_ns for one in round_.phases)
    assert round_.phases[-1].end_ns == round_.end_ns


def test_a_tree_that_fails_leaves_every_level_failed() -> None:
    """Spans handed out to the worker are recorded, whatever came of them."""
    round_ = Round(0, 5, 1, 0, start_ns=100 * MS)
    timer = PhaseTimer(round_, SetClock(100, 120), NoTrace())
    with pytest.raises(DeadlineError), timer.remote_tree(3, 4):
        raise DeadlineError("late")
    assert [one.name for one in round_.phases] == ["draft.extend", *["draft.expand"] * 3]
    assert {one.failed for one in round_.phases} == {DeadlineError("").reason}


def test_work_of_the_controller_that_fails_is_no_part_of_the_round() -> None:
    """The round goes on without what it was to bring; nothing of it is said to have failed."""
    round_ = Round(0, 5, 1, 0, start_ns=100 * MS)
    timer = PhaseTimer(round_, SetClock(100, 120), NoTrace())
    with pytest.raises(ValueError, match="bad"), timer.local("tree.rerank"):
        raise ValueError("bad")
    assert round_.phases == []
