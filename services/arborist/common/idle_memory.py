"""Memory that a burst of requests needed goes back to the system once there is nothing to do."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable

_IDLE_S = 2.0


class IdleMemory:
    """Follows whether a process has work; one event loop owns it.

    The C library keeps what was freed for its own next allocation, in pieces of all sizes: after
    load a process stays as large as it ever was, and how large that is depends on chance. What it
    keeps is given back when nothing has run for a moment.
    """

    def __init__(self, give_back: Callable[[], object] | None = None, idle_s: float = _IDLE_S):
        """Begins without work, and with nothing to give back.

        Args:
            give_back: Gives memory back, in a thread; None = asks the C library to.
            idle_s: How long nothing must have run, in seconds.
        """
        self._give_back = give_back or trim_heap
        self._idle_s = idle_s
        self._busy = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None

    def follow(self, busy: bool) -> None:
        """Takes whether there is work now; cheap when that has not changed."""
        if busy == self._busy or self._closed:
            return
        self._busy = busy
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not busy:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._idle_s, self._start, loop)

    def close(self) -> None:
        """Gives nothing back any more; safe to call twice."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        loop.run_in_executor(None, self._give_back)


def trim_heap() -> None:
    """Asks the C library to return what it keeps; does nothing where it cannot (not glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
