"""What a worker tries out before it serves, and for how long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import TypeVar

import pytest

from arborist.common import cost_rehearsal
from arborist.common.cost_rehearsal import CostRehearsal, finish_rehearsal
from arborist.common.forward_costs import ForwardCosts

ValueT = TypeVar("ValueT")


class Machine:
    """A clock, and forwards that take some milliseconds per row on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ms_per_row: float, fits: int = 256) -> None:
        self.now_s = 100.0
        self._ms_per_row, self._fits = ms_per_row, fits
        monkeypatch.setattr(cost_rehearsal, "time", SimpleNamespace(monotonic=lambda: self.now_s))

    def rehearse(self, rows: int) -> float | None:
        """Runs a forward."""
        if rows > self._fits:
            return None
        self.now_s += self._ms_per_row * rows / 1e3
        return self._ms_per_row * rows


def rows_of(costs: ForwardCosts) -> list[float]:
    """Returns the sizes that were measured."""
    return [one.rows for one in costs.points]


def test_all_sizes_that_fit_are_tried_where_time_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger ones than fit are left out."""
    costs = ForwardCosts()

    CostRehearsal(Machine(monkeypatch, 0.1, fits=100).rehearse, costs).run(2.0)

    assert rows_of(costs) == [1, 8, 16, 32, 64]
    assert [one.ms for one in costs.points] == pytest.approx([0.1, 0.8, 1.6, 3.2, 6.4])


@pytest.mark.parametrize("budget_s", [0.5, 2.0])
def test_a_start_waits_no_longer_than_it_may(
    monkeypatch: pytest.MonkeyPatch, budget_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    """But for the forward that runs; what was measured till then counts, and the log says it."""
    machine, costs = Machine(monkeypatch, 2.0), ForwardCosts()

    with caplog.at_level(logging.INFO):
        CostRehearsal(machine.rehearse, costs).run(budget_s)

    most = costs.points[-1].rows
    assert most in (32, 128)
    assert machine.now_s - 100.0 <= budget_s + 2 * 2.0 * most / 1e3
    assert f"up to {most:.0f} rows" in caplog.text


def test_no_size_is_known_by_its_first_forward_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """That one also pays for what is new; better nothing is known until forwards serve."""
    costs = ForwardCosts()

    CostRehearsal(Machine(monkeypatch, 900.0).rehearse, costs).run(0.5)

    assert rows_of(costs) == []


class Busy:
    """A worker that has a session now and then, and notes when it is asked to try out."""

    def __init__(self) -> None:
        self.empty = asyncio.Event()
        self.num_calls = 0

    async def wait_empty(self) -> None:
        """Waits for the end of the session."""
        await self.empty.wait()

    async def call(self, function: Callable[[], ValueT]) -> ValueT:
        """Runs it; then the next session comes."""
        self.num_calls += 1
        self.empty.clear()
        return function()


async def test_a_forward_that_fails_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it was: nobody else hears of it, and the worker serves on."""

    def rehearse(rows: int) -> float | None:
        raise RuntimeError("out of memory")

    worker = Busy()
    worker.empty.set()
    await finish_rehearsal(CostRehearsal(rehearse, ForwardCosts()), worker)

    assert "trying out forwards failed" in caplog.text
    assert "out of memory" in caplog.text


async def test_what_the_start_left_out_is_tried_while_there_is_no_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One forward at a time, until all is known that a longer start would have told."""
    machine, short, full = Machine(monkeypatch, 2.0), ForwardCosts(), ForwardCosts()
    CostRehearsal(machine.rehearse, full).run(2.0)
    rehearsal, worker = CostRehearsal(machine.rehearse, short), Busy()
    rehearsal.run(0.5)
    assert rows_of(short) == [1, 8, 16, 32]

    rest = asyncio.create_task(finish_rehearsal(rehearsal, worker))
    while not rest.done():
        before = worker.num_calls
        worker.empty.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert worker.num_calls <= before + 1

    assert rehearsal.over
    assert short.points == full.points
