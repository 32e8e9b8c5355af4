"""The thread that forms forwards of what is queued."""

from __future__ import annotations

import math
import queue
from typing import Any

import pytest

from arborist.common.command import Command, RunWork
from arborist.common.compute_thread import ComputeThread
from arborist.common.job import Job
from arborist.core.engine import SessionKey
from arborist.core.stamp import Stamp


class Engine:
    """Echoes work; its forwards are kept."""

    kv_reserved_tokens = 0

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []

    def run(self, batch: list[Any]) -> list[Any]:
        """Returns the batch."""
        self.batches.append(list(batch))
        return list(batch)


class Nobody:
    """Waits for nothing."""

    def answer(self, command_id: int, job: Job) -> None:
        """Does nothing."""


def job(session: str, number: int, num_tokens: int = 1, follows: bool = False) -> Job:
    """Returns a command of a session."""
    stamp = Stamp(1, number, 0)
    work = RunWork(stamp, (session, number), num_tokens, "verify", bulk=False, follows=follows)
    return Job(Command(number, ("c", session), "", work), Nobody())


@pytest.mark.parametrize(
    ("max_rows", "max_batch_tokens", "sizes", "batches"),
    [
        (8, 100, {"a1": 1, "b1": 1, "a2": 1}, [["a1", "b1"], ["a2"]]),
        (2, 100, {"a1": 1, "b1": 1, "c1": 1}, [["a1", "b1"], ["c1"]]),
        (8, 10, {"a1": 8, "b1": 8, "c1": 2}, [["a1", "c1"], ["b1"]]),
        (8, 10, {"a1": 50, "b1": 1}, [["a1"], ["b1"]]),
        (
            8,
            10,
            {"a1": 8, "b1": 8, "b2": 1},
            [
                ["a1"],
                [
                    "b1",
                ],
                ["b2"],
            ],
        ),
    ],
)
def test_forwards_are_full_and_sessions_keep_their_order(
    max_rows: int, max_batch_tokens: int, sizes: dict[str, int], batches: list[list[str]]
) -> None:
    """At most one command a session, up to rows and tokens, and none overtakes its session."""
    engine = Engine()
    delivered: queue.SimpleQueue[list[Job]] = queue.SimpleQueue()
    thread = ComputeThread(
        engine,  # type: ignore[arg-type]
        read=lambda session, rows: None,
        finish=lambda outcome: outcome,
        deliver=delivered.put,
        max_rows=max_rows,
        max_batch_tokens=max_batch_tokens,
        name="test",
    )
    jobs = [job(name[0], int(name[1]), size) for name, size in sizes.items()]
    thread.put(list(jobs))
    thread.start()
    answered = 0
    while answered < len(jobs):
        answered += len(delivered.get(timeout=10.0))
    thread.stop()

    assert thread.join(10.0)
    assert [[f"{name}{number}" for name, number in batch] for batch in engine.batches] == batches
    assert [one.answer for one in jobs] == [(name[0], int(name[1])) for name in sizes]
    assert all(one.queue_ms >= 0.0 for one in jobs)


@pytest.mark.parametrize(
    ("names", "answers"),
    [
        (["a1", "a2+"], [["a1"], ["a2"]]),
        (["a1", "b1", "a2+", "b2+"], [["a1", "b1"], ["a2", "b2"]]),
        (["a1", "b1", "a2+"], [["a1", "b1"], ["a2"]]),
        (["a1", "a2+", "a3", "a4+"], [["a1"], ["a2"], ["a3"], ["a4"]]),
    ],
)
def test_pairs_are_answered_in_order_and_together(
    names: list[str], answers: list[list[str]]
) -> None:
    """Nothing is answered out of turn or left behind, and a lone pair is answered at its end."""
    engine = Engine()
    delivered: queue.SimpleQueue[tuple[int, list[Job]]] = queue.SimpleQueue()
    thread = ComputeThread(
        engine,  # type: ignore[arg-type]
        read=lambda session, rows: None,
        finish=lambda outcome: outcome,
        deliver=lambda jobs: delivered.put((len(engine.batches), jobs)),
        max_rows=8,
        max_batch_tokens=100,
        name="test",
    )
    thread.put([job(name[0], int(name[1]), follows=name.endswith("+")) for name in names])
    thread.start()
    found = [delivered.get(timeout=10.0) for _ in answers]
    thread.stop()

    assert thread.join(10.0)
    told = [["".join(map(str, one.answer)) for one in jobs] for _, jobs in found]  # type: ignore[call-overload]
    assert told == answers
    if names[-1] == "a2+" and len(names) == 2:
        assert [count for count, _ in found] == [2, 2]


class BrokenEngine(Engine):
    """Fails every forward."""

    def run(self, batch: list[Any]) -> list[Any]:
        """Raises."""
        raise RuntimeError("broken")

    def release(self, session: SessionKey) -> None:
        """Does nothing."""


def test_nobody_waits_for_a_session_that_was_given_up() -> None:
    """It does not come back, so the next forward begins at once."""
    thread = compute_thread(BrokenEngine(), gather_share=1.0)
    one = job("a", 1)

    thread._run_batch([one])
    thread._note_forward([one], 1.0)
    thread._gathering._until_s = math.inf

    assert one.failed
    assert thread._gathering.patience_s(0.0) == 0.0


def test_what_is_no_forward_waits_for_nobody() -> None:
    """An open or a release runs at once, whoever may still come."""
    thread = compute_thread(Engine(), gather_share=1.0)
    thread._gathering.ran([("c", "late")], 1, 1.0)
    thread._gathering._until_s = math.inf
    assert thread._gathering.patience_s(0.0) > 0.0

    thread._pending = [job("a", 1, num_tokens=0)]

    assert thread._gather()


def compute_thread(engine: Engine, gather_share: float) -> ComputeThread:
    """Returns a thread that was not started."""
    return ComputeThread(
        engine,  # type: ignore[arg-type]
        read=lambda session, rows: None,
        finish=lambda outcome: outcome,
        deliver=lambda jobs: None,
        max_rows=8,
        max_batch_tokens=100,
        name="test",
        gather_share=gather_share,
    )
