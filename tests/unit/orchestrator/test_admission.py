"""Who may start, who waits, who is refused."""

import asyncio

import pytest

from arborist.core.errors import ResourceExhaustedError
from arborist.orchestrator import admission as admission_module
from arborist.orchestrator.admission import Admission


def make(max_running: int = 1, max_waiting: int = 2) -> tuple[Admission, list[tuple[int, int]]]:
    """An admission and the (running, waiting) it reported."""
    reported: list[tuple[int, int]] = []
    return Admission(max_running, max_waiting, lambda *load: reported.append(load)), reported


async def test_requests_start_in_the_order_they_came():
    """A place that becomes free goes to whoever waits longest."""
    admission, reported = make()
    tickets = [admission.enter() for _ in range(3)]
    order: list[int] = []

    async def run(index: int) -> None:
        await tickets[index].turn()
        order.append(index)
        await asyncio.sleep(0)
        tickets[index].leave()

    await asyncio.gather(*(run(index) for index in (2, 1, 0)))
    assert order == [0, 1, 2]
    assert reported[0] == (1, 0)
    assert reported[-1] == (0, 0)
    assert max(running for running, _ in reported) == 1


async def test_a_full_queue_refuses_and_says_when_to_come_again():
    """Nothing is started for a request that is refused; advice grows with the time others take."""
    admission, _ = make(max_running=1, max_waiting=1)
    admission.enter()
    admission.enter()
    with pytest.raises(ResourceExhaustedError) as quick:
        admission.enter()
    for _ in range(50):
        admission.observe(20.0)
    with pytest.raises(ResourceExhaustedError) as slow:
        admission.enter()
    assert 0 < quick.value.retry_after_ms < slow.value.retry_after_ms
    assert (admission.num_running, admission.num_waiting) == (1, 1)


async def test_no_queue_still_lets_the_free_places_be_used():
    """With max_waiting 0 a request either runs at once or is refused."""
    admission, _ = make(max_running=2, max_waiting=0)
    first = admission.enter()
    admission.enter()
    with pytest.raises(ResourceExhaustedError):
        admission.enter()
    first.leave()
    await admission.enter().turn()


async def test_leaving_the_queue_frees_the_place_in_it():
    """A request that gives up while it waits is not started later; leaving twice is harmless."""
    admission, _ = make(max_running=1, max_waiting=1)
    running = admission.enter()
    gone = admission.enter()
    gone.leave()
    gone.leave()
    waiting = admission.enter()
    running.leave()
    running.leave()
    await waiting.turn()
    assert (admission.num_running, admission.num_waiting) == (1, 0)


async def test_who_steps_back_is_next_and_nobody_overtakes():
    """While the targets are full nothing starts, until a session ends."""
    admission, _ = make(max_running=3, max_waiting=5)
    running, large = admission.enter(), admission.enter()
    large.step_back(ResourceExhaustedError("full"))
    small = admission.enter()
    turns = [asyncio.create_task(ticket.turn()) for ticket in (large, small)]
    await asyncio.sleep(0.01)
    assert not any(turn.done() for turn in turns)
    running.leave()
    await asyncio.gather(*turns)
    assert admission.num_running == 2


async def test_nobody_starts_while_another_moves():
    """The room that ends leave at the targets is for a session that has to move there."""
    admission, _ = make(max_running=3, max_waiting=5)
    running, moved = admission.enter(), admission.enter()
    with admission.moving():
        with admission.moving():
            new = asyncio.create_task(admission.enter().turn())
            running.leave()
        await asyncio.sleep(0.01)
        assert not new.done()
    await new
    moved.leave()
    assert (admission.num_running, admission.num_waiting) == (1, 0)


async def test_who_does_not_fit_even_alone_is_refused_in_the_end(monkeypatch):
    """Without any other session of ours to wait for, tries are bounded."""
    monkeypatch.setattr(admission_module, "_ROOM_PERIOD_S", 0.001)
    admission, _ = make()
    ticket = admission.enter()

    async def insist() -> None:
        for _ in range(100):
            ticket.step_back(ResourceExhaustedError("full"))
            await ticket.turn()

    with pytest.raises(ResourceExhaustedError, match="full"):
        await insist()
    ticket.leave()
    assert (admission.num_running, admission.num_waiting) == (0, 0)


async def test_a_client_has_its_share_and_no_more():
    """Running and waiting count together; others still get in; what ends makes room."""
    reported: list[tuple[int, int]] = []
    admission = Admission(1, 9, lambda *load: reported.append(load), max_per_key=2)
    running, waiting = admission.enter("a"), admission.enter("a")
    with pytest.raises(ResourceExhaustedError, match="2 requests of this client") as refused:
        admission.enter("a")
    assert refused.value.retry_after_ms >= 100
    assert refused.value.metadata["limit"] == "2"
    assert reported[-1] == (1, 1)

    admission.enter("b")
    running.step_back(ResourceExhaustedError("full"))
    with pytest.raises(ResourceExhaustedError):
        admission.enter("a")
    for ticket in (waiting, waiting, running, running):
        ticket.leave()
    again = admission.enter("a")
    again.leave()
    # Keys come from outside: nothing is kept of those that are gone.
    assert set(admission._per_key) == {"b"}


async def test_who_is_refused_for_a_full_queue_does_not_count():
    """A refusal takes no part of the client's share."""
    admission = Admission(1, 0, lambda *_: None, max_per_key=2)
    first = admission.enter("a")
    for _ in range(3):
        with pytest.raises(ResourceExhaustedError, match="at most 1 and 0"):
            admission.enter("a")
    first.leave()
    assert not admission._per_key
