"""A clock for what forwards cost when nothing else disturbs them."""

from __future__ import annotations

import time
from collections.abc import Callable

BusyClock = Callable[[], int]
"""Nanoseconds from any beginning; only differences within one thread mean something."""


def busy_clock(device: str) -> BusyClock:
    """Returns the clock that times forwards on a device.

    On a CPU, the time this thread ran: a draft and a target on the same cores take turns, and what
    one waits for the other is no cost of its own. A thread that waits for a GPU does not run, and
    nobody else has that GPU: there, time as it passes.

    Args:
        device: "cpu" or "cuda:N".
    """
    return time.thread_time_ns if device == "cpu" else time.perf_counter_ns
