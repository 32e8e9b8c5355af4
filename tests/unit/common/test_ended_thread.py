"""Work in a thread of its own, which is gone when the work is done."""

import asyncio
import threading

import pytest

from arborist.common.ended_thread import in_ended_thread

NAME = "load-something"


def threads() -> list[threading.Thread]:
    """The threads of that name that live."""
    return [one for one in threading.enumerate() if one.name == NAME]


async def test_the_value_comes_back_and_the_thread_is_gone() -> None:
    """The function runs in a daemon thread of the name given, which has ended on return."""
    inside = await in_ended_thread(threading.current_thread, NAME)

    assert (inside.name, inside.daemon) == (NAME, True)
    assert inside is not threading.current_thread()
    assert not inside.is_alive()
    assert threads() == []


async def test_what_it_raises_is_raised_and_the_thread_is_gone() -> None:
    """A failure comes back as it is, after the end of the thread."""

    def fail() -> None:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        await in_ended_thread(fail, NAME)
    assert threads() == []


async def test_the_event_loop_goes_on_meanwhile() -> None:
    """Blocking in the thread blocks nobody else."""
    asked = threading.Event()

    async def answer() -> None:
        asked.set()

    value, _ = await asyncio.gather(in_ended_thread(lambda: asked.wait(10), NAME), answer())

    assert value


async def test_a_cancelled_caller_does_not_wait() -> None:
    """Cancellation comes at once; the thread finishes its work alone and tells nobody."""
    begun, leave = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        leave.wait(10)

    waiting = asyncio.ensure_future(in_ended_thread(work, NAME))
    await asyncio.to_thread(begun.wait, 10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    (still_there,) = threads()
    leave.set()
    await asyncio.to_thread(still_there.join, 10)

    assert threads() == []


def test_a_loop_that_is_gone_is_no_failure() -> None:
    """A thread that outlives its loop ends quietly."""
    begun, leave = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        leave.wait(10)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await in_ended_thread(work, NAME)

    asyncio.run(give_up())
    assert begun.wait(10)
    (still_there,) = threads()
    leave.set()
    still_there.join(10)

    assert threads() == []
