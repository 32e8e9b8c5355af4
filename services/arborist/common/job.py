"""One command on its way through a worker."""

from __future__ import annotations

import time
from typing import Any, Protocol

from arborist.common.command import Command, RunWork


class Answerable(Protocol):
    """Where answers go: a stream of results."""

    def answer(self, command_id: int, job: Job) -> None:
        """Sends the job's answer under this command id; a dead stream drops it."""
        ...


class Job:
    """A command, who waits for it, and in the end its answer.

    The event loop owns it, except between `ComputeThread.put` and delivery, when the compute thread
    writes `answer` and the times.
    """

    __slots__ = (
        "answer",
        "busy_ms",
        "command",
        "compute_ms",
        "done",
        "dropped",
        "end_ns",
        "end_unix_ns",
        "failed",
        "num_tokens",
        "queue_ms",
        "received_ns",
        "waiters",
    )

    def __init__(self, command: Command[Any, Any], waiter: Answerable) -> None:
        """Starts the clock of a command that was just received."""
        self.command = command
        self.waiters: list[tuple[Answerable, int]] = [(waiter, command.command_id)]
        self.received_ns = time.perf_counter_ns()
        body = command.body
        self.num_tokens = body.num_tokens if isinstance(body, RunWork) else 0
        self.answer: object = None
        self.queue_ms = 0.0
        self.compute_ms = 0.0
        self.busy_ms = 0.0
        """Compute without what others disturbed; 0 = not known, since it was computed ahead."""
        self.end_ns = 0
        self.end_unix_ns = 0
        self.done = False
        self.failed = False
        """The session broke: what the engine held of it cannot be trusted and is freed."""
        self.dropped = False
        """Its session is gone: answer without running it."""
