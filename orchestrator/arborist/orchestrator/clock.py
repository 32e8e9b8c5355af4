"""Time as the controller sees it; passed in, so that a simulation can own it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock that reads as Unix time."""

    def now_ns(self) -> int:
        """Returns nanoseconds since the Unix epoch; never goes backwards."""
        ...


class SystemClock:
    """The process's clock: Unix time once, monotonic from then on."""

    def __init__(self) -> None:
        self._anchor_ns = time.time_ns() - time.perf_counter_ns()

    def now_ns(self) -> int:
        """Returns nanoseconds since the Unix epoch; never goes backwards."""
        return self._anchor_ns + time.perf_counter_ns()
