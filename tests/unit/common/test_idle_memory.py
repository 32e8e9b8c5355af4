"""When a process gives memory back."""

import asyncio
import threading

from arborist.common.idle_memory import IdleMemory, trim_heap


async def test_memory_is_given_back_once_when_nothing_has_run_for_a_moment() -> None:
    """Not at once, and not again until something has run."""
    given, came = 0, threading.Event()

    def give_back() -> None:
        nonlocal given
        given += 1
        came.set()

    memory = IdleMemory(give_back, idle_s=0.02)
    memory.follow(False)  # Never was busy.
    memory.follow(True)
    memory.follow(False)
    memory.follow(False)
    assert given == 0
    assert await asyncio.to_thread(came.wait, 5.0)
    await asyncio.sleep(0.1)
    assert given == 1


async def test_nothing_is_given_back_while_something_runs_or_after_the_end() -> None:
    """Work that comes in time, and a stop, take it back."""
    given = 0

    def give_back() -> None:
        nonlocal given
        given += 1

    busy, stopped = (IdleMemory(give_back, idle_s=0.02) for _ in range(2))
    for one in (busy, stopped):
        one.follow(True)
        one.follow(False)
    busy.follow(True)
    stopped.close()
    stopped.close()
    await asyncio.sleep(0.1)
    assert given == 0


def test_a_heap_can_be_trimmed_wherever_that_is() -> None:
    """Also where the C library knows no such call."""
    trim_heap()
