"""Sessions of a worker: incarnations, order of commands, and what may be in flight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from arborist.common.command import RunWork
from arborist.common.job import Job
from arborist.common.worker_limits import WorkerLimits
from arborist.core.engine import SessionKey
from arborist.core.errors import (
    InvalidArgumentError,
    ResourceExhaustedError,
    UnknownSessionError,
)
from arborist.core.stamp import Stamp, StampGuard


class Session:
    """One incarnation of a session.

    Attributes:
        key: (controller_id, session_id).
        epoch: Incarnation.
        opening: The Open that made it; its answer is repeated to a repeated Open.
    """

    def __init__(self, key: SessionKey, epoch: int, opening: Job) -> None:
        self.key = key
        self.epoch = epoch
        self.opening = opening
        self._guard: StampGuard[Job] = StampGuard(epoch)
        # The first of the pair whose second is the last command: it may be repeated too.
        self._pair: tuple[Stamp, Job] | None = None
        self._in_flight: set[Job] = {opening}
        self._num_round = 0
        self._num_bulk = 0
        self._num_reads = 0

    def find_repeated(self, stamp: Stamp) -> Job | None:
        """Returns the last command, or one of the last pair, if this stamp repeats it, else None.

        A command refused for want of room changed nothing and may be tried again as it is.

        Raises:
            StaleStampError: The stamp is older, or of another epoch.
        """
        if stamp > self._guard.last and stamp.epoch == self.epoch:
            return None
        if self._pair is not None and stamp == self._pair[0]:
            return self._pair[1]
        last = self._guard.admit(stamp)
        if last is not None and last.done and isinstance(last.answer, ResourceExhaustedError):
            return None
        return last

    def admit(self, job: Job, limits: WorkerLimits) -> None:
        """Takes a command that is no repetition.

        Raises:
            ResourceExhaustedError: The session has its share in flight; its stamp stays unused.
            InvalidArgumentError: The second of a pair does not come right behind the first.
        """
        body = job.command.body
        if isinstance(body, RunWork):
            count = self._num_bulk if body.bulk else self._num_round
            limit = limits.max_bulk_in_flight if body.bulk else limits.max_round_in_flight
            if body.follows:
                limit += 1  # One pair is one round command in flight.
                self._check_follows(body.stamp)
        else:
            count, limit = self._num_reads, limits.max_bulk_in_flight
        if count >= limit:
            raise ResourceExhaustedError(
                f"the session has {count} such commands in flight, limit {limit}",
                metadata={"field": "in_flight", "value": str(count + 1), "limit": str(limit)},
                retry_after_ms=limits.retry_after_ms,
            )
        if isinstance(body, RunWork):
            if body.stamp > self._guard.last:
                self._pair = self._first_of_pair() if body.follows else None
                self._guard.admit(body.stamp)
            # Remembered at once: a repetition joins a command that still runs.
            self._guard.settle(body.stamp, job)
        self._count(job, 1)
        self._in_flight.add(job)

    def _check_follows(self, stamp: Stamp) -> None:
        last = self._guard.last
        if last not in (stamp, replace(stamp, step=stamp.step - 1)):
            raise InvalidArgumentError(
                "stamp.step",
                stamp.step,
                f"the step after the last command's, which is {last.tree_id}/{last.step}",
            )

    def _first_of_pair(self) -> tuple[Stamp, Job] | None:
        stamp = self._guard.last
        job = self._guard.admit(stamp)
        return None if job is None else (stamp, job)

    def settle(self, job: Job) -> None:
        """Takes a command that has its answer."""
        if job in self._in_flight:
            self._in_flight.discard(job)
            if job is not self.opening:
                self._count(job, -1)

    def drop(self) -> None:
        """Marks everything in flight as not worth running: the incarnation is over."""
        for job in self._in_flight:
            job.dropped = True

    def _count(self, job: Job, change: int) -> None:
        body = job.command.body
        if not isinstance(body, RunWork):
            self._num_reads += change
        elif body.bulk:
            self._num_bulk += change
        else:
            self._num_round += change


class SessionTable:
    """Every open session, by key."""

    def __init__(self) -> None:
        self._sessions: dict[SessionKey, Session] = {}

    def __len__(self) -> int:
        """Returns the number of sessions."""
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        """Iterates over a snapshot of the sessions."""
        return iter(list(self._sessions.values()))

    def find(self, key: SessionKey) -> Session | None:
        """Returns the newest incarnation, or None."""
        return self._sessions.get(key)

    def get(self, key: SessionKey) -> Session:
        """Returns the newest incarnation.

        Raises:
            UnknownSessionError: There is none.
        """
        session = self._sessions.get(key)
        if session is None:
            raise UnknownSessionError("no such session at this worker: open it and prefill")
        return session

    def put(self, session: Session) -> None:
        """Adds an incarnation; an older one is over."""
        older = self._sessions.get(session.key)
        if older is not None:
            older.drop()
        self._sessions[session.key] = session

    def remove(self, session: Session) -> bool:
        """Ends an incarnation and returns whether it was still the newest."""
        session.drop()
        if self._sessions.get(session.key) is not session:
            return False
        del self._sessions[session.key]
        return True
