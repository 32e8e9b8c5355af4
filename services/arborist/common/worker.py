"""The shell around an engine: sessions of many controllers, their order, and their answers.

It knows neither protobuf nor gRPC: servicers hand it commands and streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

from arborist.common.attach import PROTOCOL_VERSION, Attach, Attached, StreamLane
from arborist.common.busy_clock import busy_clock
from arborist.common.command import (
    Command,
    OpenSession,
    ReadRows,
    Released,
    ReleaseSession,
    RunWork,
)
from arborist.common.compute_thread import ComputeThread
from arborist.common.errors import internal_error
from arborist.common.forward_costs import ForwardCosts
from arborist.common.idle_memory import IdleMemory
from arborist.common.job import Answerable, Job
from arborist.common.job_spans import record_spans
from arborist.common.result_stream import ResultStream
from arborist.common.session_table import Session, SessionTable
from arborist.common.span_sink import SpanSink
from arborist.common.worker_engine import FindsPrefixes, WorkerEngine
from arborist.common.worker_info import WorkerInfo
from arborist.common.worker_limits import WorkerLimits
from arborist.common.worker_metrics import WorkerMetrics
from arborist.core.engine import SessionKey
from arborist.core.errors import (
    ArboristError,
    MismatchError,
    ResourceExhaustedError,
    SessionFailedError,
    StaleStampError,
    UnavailableError,
)
from arborist.core.pool import Pool
from arborist.core.prefix import Prefix

OpenT = TypeVar("OpenT")
WorkT = TypeVar("WorkT")
ValueT = TypeVar("ValueT")

_log = logging.getLogger(__name__)

# Forwards whose rows are alike: a node each, with logits.
# A time to divide by, where a clock saw none pass.
_TINY_MS = 1e-6
_COSTED_KINDS = {"verify", "extend", "expand"}


class Controller:
    """A controller as the worker sees it.

    Attributes:
        controller_id: Scope of its session ids.
        streams: Its attached streams, at most one per lane.
        grace: Running while no stream is attached.
    """

    def __init__(self, controller_id: str) -> None:
        self.controller_id = controller_id
        self.streams: dict[StreamLane, ResultStream] = {}
        self.grace: asyncio.TimerHandle | None = None


class _Nobody:
    """Waits for the answer of a command the worker gives itself."""

    def answer(self, command_id: int, job: Job) -> None:
        """Does nothing."""


class Worker(Generic[OpenT, WorkT]):
    """Runs the commands of all streams through one engine. One event loop owns it."""

    def __init__(
        self,
        engine: WorkerEngine[OpenT, WorkT],
        *,
        read: Callable[[SessionKey, ReadRows], object],
        finish: Callable[[object], object],
        limits: WorkerLimits,
        device: str,
        version: str,
        spans: SpanSink,
        metrics: WorkerMetrics,
        preparation: Callable[[OpenT], Callable[[], None] | None] = lambda _: None,
        keeps_features: bool = False,
    ) -> None:
        """Makes a worker; `start` starts its compute thread.

        Args:
            engine: The model; called from the compute thread alone.
            read: Reads stored features; called in the compute thread.
            finish: Makes an outcome independent of engine and device; called there too.
            limits: Bounds.
            device: "cpu" or "cuda:N", for `info`.
            version: Version of the software, for `info`.
            spans: Takes one span per traced forward command.
            metrics: Takes the numbers.
            preparation: Returns what is to run before an Open, in a thread beside the compute
                thread, because it may take long; None = nothing.
            keeps_features: Whether all features can be read back, for `info`.
        """
        self.worker_id = secrets.token_hex(16)
        self.limits = limits
        self.draining = False
        self._stopped = False
        self._kv_capacity_tokens = engine.kv_capacity_tokens
        self._model = engine.info
        self._device = device
        self._keeps_features = keeps_features
        self._version = version
        self._spans = spans
        self._metrics = metrics
        self.costs = ForwardCosts()
        """What forwards take by their rows."""
        self._sessions = SessionTable()
        self._controllers: dict[str, Controller] = {}
        self._finder = engine if isinstance(engine, FindsPrefixes) else None
        self._num_queued = 0
        self._num_queued_rows = 0
        self._preparation = preparation
        self._preparing: set[asyncio.Task[None]] = set()
        # One thread, so that however many wait, running sessions keep the other cores.
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._loop = asyncio.get_running_loop()
        self._memory = IdleMemory()
        self._empty = asyncio.Event()
        self._empty.set()
        self._compute = ComputeThread(
            engine,
            read=read,
            finish=finish,
            deliver=self._deliver_soon,
            max_rows=limits.max_rows,
            max_batch_tokens=limits.max_batch_tokens,
            name="compute",
            gather_share=limits.gather_share,
            clock=busy_clock(device),
        )

    # --- life -------------------------------------------------------------------------------------
    def start(self) -> None:
        """Starts the compute thread."""
        self._metrics.observe_prefix_cache(self._compute.prefix_counts)
        self._compute.start()

    @property
    def computing(self) -> bool:
        """Returns whether the compute thread is alive."""
        return self._compute.alive

    async def call(self, function: Callable[[], ValueT]) -> ValueT:
        """Runs a function in the compute thread, between forwards.

        Returns:
            What it returned; what it raised is raised here.
        """
        future: asyncio.Future[ValueT] = self._loop.create_future()

        def run() -> None:
            settle: Callable[[], None]
            try:
                settle = partial(_resolve, future, function())
            except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
                settle = partial(_fail, future, error)
            # A closed loop means that nobody waits any more.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(settle)

        self._compute.call(run)
        return await future

    def drain(self) -> int:
        """Refuses new sessions from now on and returns how many are still open."""
        self.draining = True
        return len(self._sessions)

    async def wait_empty(self) -> None:
        """Waits until no session is open."""
        await self._empty.wait()

    async def stop(self, timeout_s: float = 2.0) -> None:
        """Ends every stream and the compute thread.

        Args:
            timeout_s: Longest wait for a forward that runs, in seconds; a longer one is abandoned
                with its thread, which does not keep the process alive.
        """
        self.draining = self._stopped = True
        for controller in self._controllers.values():
            if controller.grace is not None:
                controller.grace.cancel()
            for stream in list(controller.streams.values()):
                stream.end(UnavailableError("the worker stops"))
        self._memory.close()
        for task in self._preparing:
            task.cancel()
        self._preparer.shutdown(wait=False, cancel_futures=True)
        self._compute.stop()
        await asyncio.to_thread(self._compute.join, timeout_s)

    def known_length(self, prefix: Prefix) -> int:
        """Returns how many leading tokens an Open would most likely take over; never waits."""
        return 0 if self._finder is None else self._finder.known_length(prefix)

    @property
    def info(self) -> WorkerInfo:
        """Returns what the worker holds and how full it is."""
        return WorkerInfo(
            worker_id=self.worker_id,
            version=self._version,
            device=self._device,
            model=self._model,
            kv_capacity_tokens=self._kv_capacity_tokens,
            kv_reserved_tokens=self._compute.kv_reserved_tokens,
            num_sessions=len(self._sessions),
            num_queued_rows=self._num_queued_rows,
            draining=self.draining,
            row_costs=self.costs.points,
            session_ms=self.costs.session_ms,
            keeps_features=self._keeps_features,
        )

    # --- streams ----------------------------------------------------------------------------------
    def check_attach(self, attach: Attach, expected_digest: str) -> None:
        """Refuses a controller that does not fit.

        Args:
            attach: Its first message.
            expected_digest: Model digest it expects here; empty = any.
        Raises:
            MismatchError: Other protocol version or other model.
        """
        if attach.protocol_version != PROTOCOL_VERSION:
            raise MismatchError(
                f"protocol_version = {attach.protocol_version}: this worker speaks "
                f"{PROTOCOL_VERSION}",
                metadata={"field": "protocol_version", "limit": str(PROTOCOL_VERSION)},
            )
        if expected_digest and expected_digest != self._model.digest:
            raise MismatchError(
                f"the controller expects model {expected_digest[:64]}, this worker holds "
                f"{self._model.digest}",
                metadata={"expected": expected_digest[:64], "held": self._model.digest},
            )

    def attach(self, stream: ResultStream) -> Attached:
        """Takes a stream; an older one of the same controller and lane is ended.

        Raises:
            UnavailableError: The worker has stopped.
            ResourceExhaustedError: Too many controllers.
        """
        if self._stopped:
            raise UnavailableError("the worker stops")
        controller_id, lane = stream.attach.controller_id, stream.attach.lane
        controller = self._controllers.get(controller_id)
        if controller is None:
            if len(self._controllers) >= self.limits.max_controllers:
                raise ResourceExhaustedError(
                    f"{len(self._controllers)} controllers are attached, limit "
                    f"{self.limits.max_controllers}",
                    retry_after_ms=self.limits.retry_after_ms,
                )
            controller = self._controllers[controller_id] = Controller(controller_id)
        if controller.grace is not None:
            controller.grace.cancel()
            controller.grace = None
        older = controller.streams.get(lane)
        controller.streams[lane] = stream
        if older is not None:
            # Half open, most likely: its peer has given it up without our noticing.
            older.end(StaleStampError("another stream of this controller took over the lane"))
        return Attached(self.worker_id)

    def detach(self, stream: ResultStream) -> None:
        """Forgets a stream; with the controller's last one, its sessions' grace time starts."""
        controller = self._controllers.get(stream.attach.controller_id)
        if controller is None or controller.streams.get(stream.attach.lane) is not stream:
            return
        del controller.streams[stream.attach.lane]
        if not controller.streams and not self._stopped:
            controller.grace = self._loop.call_later(
                self.limits.reattach_grace_s, self._release_controller, controller
            )

    def _release_controller(self, controller: Controller) -> None:
        del self._controllers[controller.controller_id]
        jobs = []
        for session in self._sessions:
            if session.key[0] == controller.controller_id:
                self._sessions.remove(session)
                release: Command[Any, Any] = Command(0, session.key, "", ReleaseSession())
                jobs.append(Job(release, _Nobody()))
        self._num_queued += len(jobs)
        if jobs:
            self._compute.put(jobs)
        self._report_sessions()

    # --- commands ---------------------------------------------------------------------------------
    def submit(self, stream: Answerable, commands: Iterable[Command[OpenT, WorkT]]) -> None:
        """Takes the commands of one frame; every one is answered on the stream, now or later."""
        jobs: list[Job] = []
        for command in commands:
            try:
                job = self._accept(stream, command)
            except ArboristError as error:
                self._metrics.count_error(error.reason)
                refused = Job(command, stream)
                refused.answer = error
                stream.answer(command.command_id, refused)
                continue
            if job is None:
                continue
            self._num_queued += 1
            self._num_queued_rows += job.num_tokens > 0
            body = command.body
            work = self._preparation(body.request) if isinstance(body, OpenSession) else None
            if work is None:
                jobs.append(job)
            else:
                task = self._loop.create_task(self._prepare(job, work), name="prepare")
                self._preparing.add(task)
                task.add_done_callback(self._preparing.discard)
        if jobs:
            self._compute.put(jobs)
            self._metrics.set_queued_rows(self._num_queued_rows)

    async def _prepare(self, job: Job, work: Callable[[], None]) -> None:
        """Runs what an Open needs first; what it raises is the Open's answer."""
        try:
            if not job.dropped:
                await self._loop.run_in_executor(self._preparer, work)
        except ArboristError as error:
            job.answer = error
        except Exception:  # noqa: BLE001 - it is this session's alone
            failure = internal_error(SessionFailedError, "the session failed")
            _log.exception("incident %s: not prepared", failure.metadata["incident"])
            job.answer = failure
        if job.answer is None:
            self._compute.put([job])
        else:
            self._deliver([job])

    def _accept(self, stream: Answerable, command: Command[OpenT, WorkT]) -> Job | None:
        """Returns a new job to run, or None when an earlier one answers the command."""
        body = command.body
        if isinstance(body, RunWork):
            session = self._sessions.get(command.session)
            earlier = session.find_repeated(body.stamp)
            if earlier is not None:
                self._join(stream, command, earlier)
                return None
            job = self._new_job(stream, command)
            session.admit(job, self.limits)
            return job
        if isinstance(body, ReadRows):
            session = self._sessions.get(command.session)
            job = self._new_job(stream, command)
            session.admit(job, self.limits)
            return job
        if isinstance(body, OpenSession):
            return self._open(stream, command, body.epoch)
        return self._release(stream, command)

    def _open(self, stream: Answerable, command: Command[OpenT, WorkT], epoch: int) -> Job | None:
        session = self._sessions.find(command.session)
        if session is not None and epoch == session.epoch:
            self._join(stream, command, session.opening)
            return None
        if session is not None and epoch < session.epoch:
            raise StaleStampError(
                f"epoch = {epoch}: the session is at {session.epoch}",
                metadata={"field": "epoch", "value": str(epoch), "limit": str(session.epoch)},
            )
        if self.draining:
            raise UnavailableError("the worker drains and takes no new sessions")
        if session is None and len(self._sessions) >= self.limits.max_sessions:
            raise ResourceExhaustedError(
                f"{len(self._sessions)} sessions are open, limit {self.limits.max_sessions}",
                metadata={"field": "max_sessions", "limit": str(self.limits.max_sessions)},
                retry_after_ms=self.limits.retry_after_ms,
            )
        job = self._new_job(stream, command)
        self._sessions.put(Session(command.session, epoch, job))
        self._report_sessions()
        return job

    def _release(self, stream: Answerable, command: Command[OpenT, WorkT]) -> Job | None:
        session = self._sessions.find(command.session)
        job = Job(command, stream)
        if session is None:
            job.answer = Released()
            stream.answer(command.command_id, job)
            return None
        self._sessions.remove(session)
        self._report_sessions()
        return job

    def _new_job(self, stream: Answerable, command: Command[OpenT, WorkT]) -> Job:
        if self._num_queued >= self.limits.max_queued_commands:
            raise ResourceExhaustedError(
                f"{self._num_queued} commands are queued, limit {self.limits.max_queued_commands}",
                retry_after_ms=self.limits.retry_after_ms,
            )
        return Job(command, stream)

    def _join(self, stream: Answerable, command: Command[OpenT, WorkT], job: Job) -> None:
        if job.done:
            stream.answer(command.command_id, job)
        elif len(job.waiters) >= self.limits.max_waiters:
            raise ResourceExhaustedError(
                f"the command was repeated {len(job.waiters)} times while it runs",
                retry_after_ms=self.limits.retry_after_ms,
            )
        else:
            job.waiters.append((stream, command.command_id))

    # --- answers ----------------------------------------------------------------------------------
    def _deliver_soon(self, jobs: list[Job]) -> None:
        # A closed loop means that nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, jobs)

    def _deliver(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.done = True
            for stream, command_id in job.waiters:
                stream.answer(command_id, job)
            job.waiters.clear()
            self._num_queued -= 1
            self._num_queued_rows -= job.num_tokens > 0
            session = self._sessions.find(job.command.session)
            if session is not None:
                session.settle(job)
                lost = isinstance(job.answer, ArboristError) and job is session.opening
                if lost or (job.failed and not job.dropped):
                    self._sessions.remove(session)
                    self._report_sessions()
        # Behind the writers woken above: an answer does not wait for its bookkeeping.
        self._loop.call_soon(self._record, jobs)

    def _record(self, jobs: list[Job]) -> None:
        self._metrics.set_queued_rows(self._num_queued_rows)
        self._metrics.set_kv_reserved_tokens(self._compute.kv_reserved_tokens)
        self._metrics.observe_prefix_cache(self._compute.prefix_counts)
        kinds = set()
        num_tokens = 0
        for job in jobs:
            if isinstance(job.answer, ArboristError):
                self._metrics.count_error(job.answer.reason)
            body = job.command.body
            if isinstance(body, RunWork):
                kinds.add(body.kind)
                num_tokens += job.num_tokens
                if job.command.traceparent:
                    record_spans(self._spans, job, body, len(jobs))
        if kinds:
            self._observe_costs(jobs, kinds, num_tokens)
            kind = kinds.pop() if len(kinds) == 1 else "mixed"
            self._metrics.observe_forward(kind, len(jobs), num_tokens, jobs[0].compute_ms / 1e3)

    def _observe_costs(self, jobs: list[Job], kinds: set[str], num_tokens: int) -> None:
        """Keeps the table of costs up; prompts are another kind of forward and stay out of it."""
        pools = [job.answer for job in jobs if isinstance(job.answer, Pool)]
        if not pools and kinds <= _COSTED_KINDS:
            self.costs.observe(num_tokens, min(job.busy_ms for job in jobs), len(jobs))
        if pools and len(pools) == len(jobs):
            busy_share = jobs[0].busy_ms / max(jobs[0].compute_ms, _TINY_MS)
            for levels in zip(*(pool.levels for pool in pools), strict=False):
                rows = sum(len(level.frontier) for level in levels)
                self.costs.observe(rows, busy_share * levels[0].compute_ms, len(levels))

    def _report_sessions(self) -> None:
        self._metrics.set_sessions(len(self._sessions))
        self._memory.follow(bool(len(self._sessions)))
        if len(self._sessions):
            self._empty.clear()
        else:
            self._empty.set()


def _resolve(future: asyncio.Future[ValueT], value: ValueT) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[ValueT], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
