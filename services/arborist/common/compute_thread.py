"""The one thread that touches the model: forms batches of what is queued and runs them."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from arborist.common.busy_clock import BusyClock
from arborist.common.command import Opened, OpenSession, ReadRows, Released, RunWork
from arborist.common.errors import internal_error
from arborist.common.gathering import Gathering
from arborist.common.job import Job
from arborist.common.worker_engine import KeepsPrefixes, RunsAhead, WorkerEngine
from arborist.core.engine import SessionKey
from arborist.core.errors import ArboristError, SessionFailedError, UnknownSessionError
from arborist.core.prefix import PrefixCounts

_log = logging.getLogger(__name__)

Finish = Callable[[object], object]
Read = Callable[[SessionKey, ReadRows], object]
Deliver = Callable[[list[Job]], None]


class ComputeThread:
    """Runs commands in the order they came, as many as fit in one forward.

    The next forward takes the oldest commands of all sessions, at most one per session, up to
    `max_rows` commands and `max_batch_tokens` tokens. Commands of one session never overtake each
    other. What is no forward (open, read, release) runs before it. With nothing left to do, an
    engine that runs ahead does so once. Answers leave after each forward; those of commands that
    are the first of a pair leave with the second's. Before it begins, a forward waits a moment for
    sessions that were just answered and usually come back at once: see `gathering`.
    """

    def __init__(
        self,
        engine: WorkerEngine[Any, Any],
        *,
        read: Read,
        finish: Finish,
        deliver: Deliver,
        max_rows: int,
        max_batch_tokens: int,
        name: str,
        gather_share: float = 0.0,
        clock: BusyClock = time.perf_counter_ns,
    ) -> None:
        """Prepares the thread; `start` starts it.

        Args:
            engine: Called from this thread alone.
            read: Reads stored features, in this thread.
            finish: Turns an outcome into what may leave this thread (features as bytes).
            deliver: Takes jobs that have their answers; called in this thread, must not block.
            max_rows: Most commands of one forward.
            max_batch_tokens: Most tokens of one forward, unless one command has more.
            name: Name of the thread.
            gather_share: Longest wait for sessions just answered, as a share of a forward's fixed
                time; 0 = none.
            clock: Times forwards for the table of costs.
        """
        self._clock = clock
        self._gathering = Gathering(gather_share)
        self._engine = engine
        self._read = read
        self._finish = finish
        self._deliver = deliver
        self._max_rows = max_rows
        self._max_batch_tokens = max_batch_tokens
        self._inbox: queue.SimpleQueue[list[Job] | Callable[[], None] | None] = queue.SimpleQueue()
        self._pending: list[Job] = []
        self._first_of_pairs: list[Job] = []  # Answered with what follows them.
        self._runs_ahead = engine if isinstance(engine, RunsAhead) else None
        # When the next command of a session was computed, if it already was: begin and end.
        self._ahead_ns: dict[SessionKey, tuple[int, int]] = {}
        self._prefixes = engine if isinstance(engine, KeepsPrefixes) else None
        self.kv_reserved_tokens = engine.kv_reserved_tokens
        """Positions reserved after the last open or release; may be read from any thread."""
        self.prefix_counts = (
            PrefixCounts() if self._prefixes is None else self._prefixes.prefix_counts
        )
        """What the prefix cache did up to then; may be read from any thread."""
        # A daemon: a forward that never returns must not keep the process from ending.
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Returns whether the thread runs."""
        return self._thread.is_alive()

    def put(self, jobs: list[Job]) -> None:
        """Queues commands; the list is the thread's from now on."""
        self._inbox.put(jobs)

    def call(self, function: Callable[[], None]) -> None:
        """Queues a function to run between forwards; it must not raise."""
        self._inbox.put(function)

    def stop(self) -> None:
        """Tells the thread to end after what it is doing; queued commands stay unanswered."""
        self._inbox.put(None)

    def join(self, timeout_s: float) -> bool:
        """Waits for the end of the thread and returns whether it came in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while self._receive() and self._gather():
            controls, batch = self._take()
            if controls:
                for job in controls:
                    self._run_control(job)
                self.kv_reserved_tokens = self._engine.kv_reserved_tokens
                if self._prefixes is not None:
                    self.prefix_counts = self._prefixes.prefix_counts
                self._deliver(controls)
            if batch:
                start_s = time.perf_counter()
                self._run_batch(batch)
                self._note_forward(batch, time.perf_counter() - start_s)
                self._deliver_in_pairs(batch)
                self._gathering.answered(time.perf_counter())
                if not self._pending and self._inbox.empty():
                    self._run_ahead()

    def _deliver_in_pairs(self, batch: list[Job]) -> None:
        """Delivers a batch, unless all of it goes on in the next forward: then both together.

        Writing an answer while this thread computes costs the forward more time than it saves.
        """
        if self._first_of_pairs:
            self._deliver(self._first_of_pairs)
            self._first_of_pairs = []
        going_on = {job.command.session for job in self._pending if _follows(job)}
        if going_on and all(job.command.session in going_on for job in batch):
            self._first_of_pairs = batch
        else:
            self._deliver(batch)

    def _run_ahead(self) -> None:
        """Lets the engine compute what it expects to be asked for, while nothing else waits."""
        if self._runs_ahead is None:
            return
        start_ns = time.perf_counter_ns()
        sessions = self._runs_ahead.run_ahead()
        end_ns = time.perf_counter_ns()
        for session in sessions:
            self._ahead_ns[session] = (start_ns, end_ns)

    def _note_forward(self, batch: list[Job], seconds: float) -> None:
        # One that was given up does not come back.
        sessions = [job.command.session for job in batch if not job.failed]
        self._gathering.ran(sessions, sum(job.num_tokens for job in batch), seconds)
        now_s = time.perf_counter()
        for job in self._pending:
            self._gathering.came(job.command.session, now_s)

    def _receive(self) -> bool:
        """Moves everything received to `_pending`, waiting if there is nothing to do.

        Returns:
            False once the thread is to end.
        """
        while True:
            try:
                item = self._inbox.get(block=not self._pending)
            except queue.Empty:
                return True
            if item is None:
                return False
            self._accept(item)
            if self._inbox.empty() and self._pending:
                return True

    def _gather(self) -> bool:
        """Waits a moment for sessions that usually come back at once, if a forward is due.

        Returns:
            False once the thread is to end.
        """
        while (
            len(self._pending) < self._max_rows
            and any(job.num_tokens for job in self._pending)
            and (patience_s := self._gathering.patience_s(time.perf_counter())) > 0.0
        ):
            try:
                item = self._inbox.get(timeout=patience_s)
            except queue.Empty:
                return True
            if item is None:
                return False
            self._accept(item)
        return True

    def _accept(self, item: list[Job] | Callable[[], None]) -> None:
        if not isinstance(item, list):
            item()
            return
        self._pending.extend(item)
        now_s = time.perf_counter()
        for job in item:
            self._gathering.came(job.command.session, now_s)

    def _take(self) -> tuple[list[Job], list[Job]]:
        """Takes what runs next from `_pending`: other commands, and one forward's."""
        if len(self._pending) == 1:
            only, self._pending = self._pending, []
            return ([], only) if only[0].num_tokens else (only, [])
        controls: list[Job] = []
        batch: list[Job] = []
        left: list[Job] = []
        busy: set[SessionKey] = set()
        num_tokens = 0
        for job in self._pending:
            session = job.command.session
            if session in busy:
                left.append(job)
            elif not job.num_tokens:
                controls.append(job)
            elif not batch or (
                len(batch) < self._max_rows
                and num_tokens + job.num_tokens <= self._max_batch_tokens
            ):
                batch.append(job)
                num_tokens += job.num_tokens
                busy.add(session)
            else:
                left.append(job)
                busy.add(session)
        self._pending = left
        return controls, batch

    def _run_control(self, job: Job) -> None:
        start_ns = time.perf_counter_ns()
        try:
            job.answer = self._control_answer(job)
        except ArboristError as error:
            job.answer = error
        except Exception:  # noqa: BLE001 - whatever it is, it is this session's alone
            job.answer = self._failure(job)
        _stamp_times(job, start_ns)

    def _control_answer(self, job: Job) -> object:
        session, body = job.command.session, job.command.body
        if isinstance(body, OpenSession):
            if job.dropped:
                return _gone()
            try:
                reserved = self._engine.open(session, body.request)
                reused = self._prefixes.num_reused(session) if self._prefixes is not None else 0
                return Opened(reserved, reused)
            except BaseException:
                self._engine.release(session)  # Nothing half open stays.
                raise
        if isinstance(body, ReadRows):
            if job.dropped:
                return _gone()
            return self._read(session, body)
        self._keep(session)
        self._engine.release(session)
        self._ahead_ns.pop(session, None)
        self._gathering.forget(session)
        return Released()

    def _keep(self, session: SessionKey) -> None:
        """Lets a session that ends leave something; one that was given up never gets here."""
        if self._prefixes is None:
            return
        try:
            self._prefixes.keep(session)
        except Exception:  # noqa: BLE001 - a cache that fails must not keep the session alive
            _log.warning("keeping a session's prefix failed", exc_info=True)

    def _run_batch(self, batch: list[Job]) -> None:
        start_ns, busy_since_ns = time.perf_counter_ns(), self._clock()
        alive = [job for job in batch if not job.dropped]
        if len(alive) == 1:
            self._run_alone(alive[0])
        elif alive:
            try:
                outcomes = self._forward(alive)
            except Exception:  # noqa: BLE001 - one bad session must not fail the others
                _log.warning("a forward over %d commands failed", len(alive), exc_info=True)
                # One by one: only the culprit shall fail.
                for job in alive:
                    self._run_alone(job)
            else:
                # Committed by now: what goes wrong from here on must not run anything again.
                for job, outcome in zip(alive, outcomes, strict=True):
                    self._settle(job, outcome)
        busy_ms = (self._clock() - busy_since_ns) / 1e6
        for job in batch:
            if job.answer is None:
                job.answer = _gone()
            ahead = self._ahead_ns.pop(job.command.session, None)
            job.busy_ms = 0.0 if ahead is not None else busy_ms
            _stamp_times(job, start_ns, ahead)

    def _forward(self, jobs: Sequence[Job]) -> Sequence[object]:
        outcomes = self._engine.run([_work(job) for job in jobs])
        if len(outcomes) != len(jobs):
            raise RuntimeError(f"{len(outcomes)} outcomes for {len(jobs)} commands")
        return outcomes

    def _run_alone(self, job: Job) -> None:
        try:
            (outcome,) = self._forward([job])
        except Exception:  # noqa: BLE001 - found the culprit, whatever it raised
            job.answer = self._failure(job)
        else:
            self._settle(job, outcome)

    def _settle(self, job: Job, outcome: object) -> None:
        if isinstance(outcome, SessionFailedError):
            self._give_up(job)  # The engine said so itself: nothing may follow.
        try:
            job.answer = self._finish(outcome)
        except Exception:  # noqa: BLE001 - one bad outcome must not fail the others
            job.answer = self._failure(job)

    def _failure(self, job: Job) -> ArboristError:
        """Gives up a session whose engine state is unknown."""
        error = internal_error(SessionFailedError, "the session failed")
        _log.exception("incident %s: session given up", error.metadata["incident"])
        self._give_up(job)
        return error

    def _give_up(self, job: Job) -> None:
        """Frees a session that cannot go on; the worker forgets it with the job's answer."""
        job.failed = True
        session = job.command.session
        self._gathering.forget(session)
        self._ahead_ns.pop(session, None)
        try:
            self._engine.release(session)
        except Exception:  # noqa: BLE001 - logged; the session is given up anyway
            _log.exception("the release of a session that was given up failed")
        self.kv_reserved_tokens = self._engine.kv_reserved_tokens


def _gone() -> UnknownSessionError:
    return UnknownSessionError("the session was replaced or released")


def _follows(job: Job) -> bool:
    body = job.command.body
    return isinstance(body, RunWork) and body.follows


def _work(job: Job) -> object:
    body = job.command.body
    if not isinstance(body, RunWork):
        raise TypeError("only work goes into a forward")
    return body.work


def _stamp_times(job: Job, start_ns: int, ahead: tuple[int, int] | None = None) -> None:
    """Notes the times of a command; what was computed ahead for it is compute, not queue."""
    end_ns = time.perf_counter_ns()
    waiting_since_ns = job.received_ns
    compute_ns = end_ns - start_ns
    if ahead is not None:
        compute_ns += ahead[1] - ahead[0]
        waiting_since_ns = min(max(waiting_since_ns, ahead[1]), start_ns)
    job.queue_ms = (start_ns - waiting_since_ns) / 1e6
    job.compute_ms = compute_ns / 1e6
    job.end_ns = end_ns
    job.end_unix_ns = time.time_ns()
