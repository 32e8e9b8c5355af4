"""Forwards that a worker tries out, before it serves and behind it, to know what rows cost."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from arborist.common.forward_costs import ForwardCosts
from arborist.core.errors import ArboristError

ValueT = TypeVar("ValueT")

_log = logging.getLogger(__name__)

# Sizes whose cost is measured, smallest first, and how often each.
_REHEARSED_ROWS = (1, 8, 16, 32, 64, 128, 256)
_REHEARSALS = 4

FULL_REHEARSAL_S = 2.0
"""What is spent in all, and before a worker serves whose trees follow the load."""

SHORT_REHEARSAL_S = 0.5
"""What is spent before any other worker serves; the rest is while it has no session."""


class CostRehearsal:
    """Fills a table of costs; rows that do not fit, or would take too long, stay out of it."""

    def __init__(self, rehearse: Callable[[int], float | None], costs: ForwardCosts) -> None:
        """Prepares.

        Args:
            rehearse: Runs a forward of so many rows and returns its milliseconds; None = they do
                not fit.
            costs: Where they go.
        """
        self._rehearse = rehearse
        self._costs = costs
        self._sizes = list(_REHEARSED_ROWS)
        self._taken: list[float] = []
        self._spent_s = 0.0

    @property
    def over(self) -> bool:
        """Returns whether nothing is left to try."""
        return not self._sizes

    def run(self, budget_s: float) -> None:
        """Tries out until so many seconds are spent in all; the forward that runs is finished."""
        while not self.over and self._spent_s < budget_s:
            self.step()
        most = round(self._costs.points[-1].rows) if self._costs.points else 0
        _log.info("forwards of up to %d rows tried out in %.2f s", most, self._spent_s)

    def step(self) -> None:
        """Tries out one forward."""
        rows, start_s = self._sizes[0], time.monotonic()
        ms = self._rehearse(rows)
        self._spent_s += time.monotonic() - start_s
        if ms is None:
            self._sizes.clear()
            return
        self._taken.append(ms)
        late = self._spent_s >= FULL_REHEARSAL_S
        if late or len(self._taken) == _REHEARSALS:
            if len(self._taken) > 1:  # The first one also pays for what is new.
                self._costs.observe(rows, min(self._taken))
            self._taken.clear()
            self._sizes = [] if late else self._sizes[1:]


class IdleWorker(Protocol):
    """What a rehearsal needs of a worker that serves."""

    async def wait_empty(self) -> None:
        """Waits until no session is open."""
        ...

    def call(self, function: Callable[[], ValueT]) -> Awaitable[ValueT]:
        """Runs a function in the compute thread, between forwards."""
        ...


async def finish_rehearsal(rehearsal: CostRehearsal, worker: IdleWorker) -> None:
    """Tries out what is left, one forward at a time, while a worker has no session.

    Args:
        rehearsal: Begun.
        worker: Serves; a session that comes waits for one forward at most.
    """
    try:
        while not rehearsal.over:
            await worker.wait_empty()
            await worker.call(rehearsal.step)
    except ArboristError as error:
        _log.warning("trying out forwards failed: %s", error.message)
    except Exception:  # noqa: BLE001 - nobody waits for this task: else it would end unheard
        _log.exception("trying out forwards failed")
