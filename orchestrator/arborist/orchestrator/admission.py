"""Who may start: bounds on sessions, queue and each client, refusal before any work."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from arborist.core.errors import ResourceExhaustedError

# How long a request waits for room at the targets when none of our own sessions ends.
_ROOM_PERIOD_S = 0.25
_MAX_TRIES_ALONE = 20


class Ticket:
    """A request's place: waiting, running, or left."""

    def __init__(self, admission: Admission, key: str) -> None:
        """Made by `Admission.enter`."""
        self._admission = admission
        self._key = key
        self._turn: asyncio.Future[None] | None = None
        self._running = False
        self._tries_alone = 0

    async def turn(self) -> None:
        """Returns once the request may run; cancellation keeps the place until `leave`."""
        if self._turn is not None:
            await self._turn

    def step_back(self, error: ResourceExhaustedError) -> None:
        """Gives the turn back because the targets are full; the request is next again.

        Nobody overtakes it: nothing starts until a session ends or a moment has passed.

        Args:
            error: What the target said; raised when nothing else runs here and it still is full.
        Raises:
            ResourceExhaustedError: It does not fit even alone.
        """
        self._tries_alone = self._tries_alone + 1 if self._admission.num_running == 1 else 0
        if self._tries_alone > _MAX_TRIES_ALONE:
            raise error
        self._admission._step_back(self)

    def leave(self) -> None:
        """Gives the place up; safe to call twice."""
        self._admission._leave(self)


class Admission:
    """Running and waiting requests of one controller; one event loop owns it."""

    def __init__(
        self,
        max_running: int,
        max_waiting: int,
        on_change: Callable[[int, int], None],
        *,
        max_per_key: int = 0,
    ) -> None:
        """Opens the door.

        Args:
            max_running: Most requests decoded at a time.
            max_waiting: Most requests in the queue.
            on_change: Told (running, waiting) after every change.
            max_per_key: Most requests of one key, running and waiting together; 0 = no bound.
        """
        self._max_per_key = max_per_key
        self._per_key: Counter[str] = Counter()
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._on_change = on_change
        self._waiting: deque[Ticket] = deque()
        self._full_until_change = False
        self._timer: asyncio.TimerHandle | None = None
        self._mean_s = 1.0
        self._num_moving = 0
        self.num_running = 0

    @property
    def num_waiting(self) -> int:
        """Returns requests in the queue."""
        return len(self._waiting)

    def enter(self, key: str = "") -> Ticket:
        """Gives a request a place.

        Args:
            key: Whose it is; what the bound per key counts.

        Raises:
            ResourceExhaustedError: Sessions and queue are full, or the key has its share; says
                when to come again.
        """
        if self._max_per_key and self._per_key[key] >= self._max_per_key:
            raise ResourceExhaustedError(
                f"{self._per_key[key]} requests of this client run or wait: at most "
                f"{self._max_per_key}",
                metadata={"field": "max_requests_per_key", "limit": str(self._max_per_key)},
                # One of its own has to end, whatever others do.
                retry_after_ms=_bounded_ms(self._mean_s / self._max_per_key),
            )
        ticket = Ticket(self, key)
        if not self._waiting and self._has_room():
            self._per_key[key] += 1
            self._start(ticket)
            self._changed()
            return ticket
        if len(self._waiting) >= self._max_waiting:
            raise ResourceExhaustedError(
                f"{self.num_running} requests run and {self.num_waiting} wait: at most "
                f"{self._max_running} and {self._max_waiting}",
                retry_after_ms=self._retry_after_ms(),
            )
        ticket._turn = asyncio.get_running_loop().create_future()
        self._per_key[key] += 1
        self._waiting.append(ticket)
        self._changed()
        return ticket

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Lets nobody start while the block runs.

        In it a running request looks for another target: the room that others leave there is for
        it, because it has delivered something already.
        """
        self._num_moving += 1
        try:
            yield
        finally:
            self._num_moving -= 1
            self._pump()

    def observe(self, seconds: float) -> None:
        """Takes how long a request ran, for the advice when to come again."""
        self._mean_s += 0.1 * (seconds - self._mean_s)

    def _has_room(self) -> bool:
        held = self._full_until_change or self._num_moving > 0
        return not held and self.num_running < self._max_running

    def _retry_after_ms(self) -> int:
        return _bounded_ms(self._mean_s * (self.num_waiting + 1) / self._max_running)

    def _start(self, ticket: Ticket) -> None:
        ticket._running = True
        self.num_running += 1

    def _pump(self) -> None:
        while self._waiting and self._has_room():
            ticket = self._waiting.popleft()
            self._start(ticket)
            if ticket._turn is not None and not ticket._turn.done():
                ticket._turn.set_result(None)
        self._changed()

    def _step_back(self, ticket: Ticket) -> None:
        loop = asyncio.get_running_loop()
        ticket._running = False
        ticket._turn = loop.create_future()
        self.num_running -= 1
        self._waiting.appendleft(ticket)
        self._full_until_change = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(_ROOM_PERIOD_S, self._look_again)
        self._changed()

    def _look_again(self) -> None:
        self._timer = None
        self._full_until_change = False
        self._pump()

    def _leave(self, ticket: Ticket) -> None:
        if ticket._running:
            ticket._running = False
            self.num_running -= 1
            self._full_until_change = False
        elif ticket in self._waiting:
            self._waiting.remove(ticket)
        else:
            return
        self._per_key[ticket._key] -= 1
        if not self._per_key[ticket._key]:
            del self._per_key[ticket._key]  # Keys come from outside: none is kept for nothing.
        self._pump()

    def _changed(self) -> None:
        self._on_change(self.num_running, self.num_waiting)


def _bounded_ms(seconds: float) -> int:
    return round(1e3 * min(max(seconds, 0.1), 60.0))
