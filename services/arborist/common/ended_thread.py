"""Work in a thread that ends with it, for what uses OpenMP once.

OpenMP keeps a team of helper threads for every thread that ever computed. As soon as a process has
more of them than cores, they no longer spin between two parallel regions but sleep, in all teams:
a forward of two hundred regions then takes 1.6 times as long. A pool's thread would keep its team;
a thread that ends gives it back.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

ValueT = TypeVar("ValueT")


async def in_ended_thread(function: Callable[[], ValueT], name: str) -> ValueT:
    """Runs a function in a daemon thread of its own, and waits for the end of that thread.

    Args:
        function: Blocks as long as it likes; goes on when the caller is cancelled.
        name: Name of the thread.
    Returns:
        What it returned; what it raised is raised here.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[ValueT] = loop.create_future()

    def settle(set_outcome: Callable[[], None]) -> None:
        if not future.done():
            set_outcome()

    def work() -> None:
        try:
            outcome = partial(future.set_result, function())
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            outcome = partial(future.set_exception, error)
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, outcome)

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        return await future
    finally:
        if not future.cancelled():
            thread.join()  # Nothing is left to do but to free its OpenMP team.
