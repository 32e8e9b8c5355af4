"""Whom a forward waits for."""

from __future__ import annotations

import queue
import time

import pytest
from tests.unit.common.test_compute_thread import Engine, job

from arborist.common.compute_thread import ComputeThread
from arborist.common.gathering import ForwardCost, Gathering
from arborist.common.job import Job

A, B, C = ("c", "a"), ("c", "b"), ("c", "c")


def taught(share: float = 0.5) -> Gathering:
    """Knows forwards of 8 ms and 1 ms a token."""
    gathering = Gathering(share)
    for number in range(32):
        gathering.ran([], number % 8, 0.008 + 0.001 * (number % 8))
    return gathering


def test_the_fixed_time_of_a_forward_is_learned() -> None:
    """A line through what was seen; unknown at first; never more than all of it, never negative."""
    cost = ForwardCost()
    for number in range(15):
        cost.observe(number, 0.004 + 0.002 * number)
    assert cost.fixed_s == 0.0
    cost.observe(15, 0.034)
    assert cost.fixed_s == pytest.approx(0.004)

    same, falling = ForwardCost(), ForwardCost()
    for number in range(16):
        same.observe(4, 0.003)
        falling.observe(number, 0.1 * number * number)
    assert same.fixed_s == pytest.approx(0.003)
    assert falling.fixed_s == 0.0


def test_a_forward_waits_until_all_came_back_or_time_is_up() -> None:
    """The wait counts from the answers; who is queued already is not waited for."""
    gathering = taught()
    gathering.ran([A, B, C], 3, 0.011)
    gathering.came(C, 1.0)
    gathering.answered(1.0)

    assert gathering.patience_s(1.001) == pytest.approx(0.003, abs=1e-4)
    assert gathering.patience_s(1.005) == 0.0
    gathering.came(A, 1.001)
    assert gathering.patience_s(1.001) > 0.0
    gathering.forget(B)
    assert gathering.patience_s(1.001) == 0.0


def test_who_does_not_come_back_is_waited_for_ever_more_rarely() -> None:
    """1, 3, 7 … 63 forwards without a wait; one return and all is forgotten."""
    gathering = taught()
    waits = []
    for number in range(300):
        gathering.ran([A], 1, 0.009)
        gathering.answered(float(number))
        if gathering.patience_s(number) > 0.0:
            waits.append(number)
    assert waits == [0, 2, 6, 14, 30, 62, 126, 190, 254]

    for number in range(300, 400):
        gathering.ran([A], 1, 0.009)
        gathering.answered(float(number))
        if gathering.patience_s(number) > 0.0:
            gathering.came(A, float(number))
            waits.append(number)
    assert waits[9:] == list(range(318, 400))


def test_who_comes_back_in_time_without_being_waited_for_is_waited_for_again() -> None:
    """A session that stopped drafting, say: it must not stay out of step for 63 forwards."""
    gathering = taught()
    for number in range(40):
        gathering.ran([A], 1, 0.009)
        gathering.answered(float(number))
    assert gathering.patience_s(39.0) == 0.0

    gathering.came(A, 39.001)
    gathering.ran([A], 1, 0.009)
    gathering.answered(40.0)

    assert gathering.patience_s(40.0) > 0.0


def test_without_a_share_nobody_is_waited_for() -> None:
    """0 switches it off."""
    gathering = taught(share=0.0)
    gathering.ran([A], 1, 0.009)
    gathering.answered(1.0)
    assert gathering.patience_s(1.0) == 0.0


class SlowEngine(Engine):
    """Takes a while, so that there is something to share."""

    def run(self, batch: list[object]) -> list[object]:
        """Returns the batch."""
        time.sleep(0.002)
        return super().run(batch)


def test_sessions_that_went_together_go_together_again() -> None:
    """One of two comes late, and still gets into the forward of the other."""
    engine = SlowEngine()
    delivered: queue.SimpleQueue[list[Job]] = queue.SimpleQueue()
    thread = ComputeThread(
        engine,  # type: ignore[arg-type]
        read=lambda session, rows: None,
        finish=lambda outcome: outcome,
        deliver=delivered.put,
        max_rows=8,
        max_batch_tokens=100,
        name="test",
        gather_share=10_000.0,  # 20 s: only a wait without end would take that long.
    )
    thread.start()
    for number in range(20):
        thread.put([job("a", number), job("b", number)])
        assert len(delivered.get(timeout=30.0)) == 2
    thread.put([job("a", 20)])
    time.sleep(0.05)
    thread.put([job("b", 20)])
    together = delivered.get(timeout=30.0)
    thread.put([job("a", 21)])
    thread.stop()

    assert thread.join(30.0)
    assert [one.command.session[1] for one in together] == ["a", "b"]
