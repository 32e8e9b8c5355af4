"""A worker as the controller holds on to it: both lanes, what it says of itself, reconnection."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import grpc
import grpc.aio

from arborist.common.attach import Attach, StreamLane
from arborist.common.command import Reply
from arborist.common.errors import error_from_call
from arborist.common.server import MAX_INTERNAL_MESSAGE_BYTES, channel_options
from arborist.common.worker_info import WorkerInfo
from arborist.core.cost_table import CostTable
from arborist.core.errors import ArboristError, MismatchError, UnavailableError
from arborist.orchestrator.stream import (
    BuildCommand,
    CommandStream,
    Patience,
    StreamWire,
    open_stream,
)

CommandT = TypeVar("CommandT")
AnswerT = TypeVar("AnswerT")
InfoT = TypeVar("InfoT")

# How long a disconnect waits for the worker to free our sessions; later its grace time does.
_RELEASE_S = 0.5
# How the end of a stream reads when its worker was told to stop.
_STOPPED = "the worker stops"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """How a worker is reached, and how often it is looked at.

    Attributes:
        connect_timeout_s: Until a worker must have answered GetInfo and Attach.
        backoff_first_s: Pause before the first new try; doubles with every failure, jittered.
        backoff_max_s: Longest pause.
        refresh_s: Between two looks at load and draining.
        probe_timeout_s: Until a worker that is late with a command must have answered GetInfo.
        max_extensions: How often a command gets its time again at a worker that is late but
            alive, where the protocol is patient.
        max_extra_s: Once it got so much more time, it gets no further.
    """

    connect_timeout_s: float = 5.0
    backoff_first_s: float = 0.05
    backoff_max_s: float = 2.0
    refresh_s: float = 2.0
    probe_timeout_s: float = 2.0
    max_extensions: int = 15
    max_extra_s: float = 30.0

    def channel_options(self, lane: StreamLane) -> list[tuple[str, int | str]]:
        """Returns gRPC options of a lane's own channel."""
        first_ms, max_ms = round(self.backoff_first_s * 1e3), round(self.backoff_max_s * 1e3)
        return [
            *channel_options(MAX_INTERNAL_MESSAGE_BYTES),
            # Channels with equal options share a connection: a long prompt would delay rounds.
            ("grpc.use_local_subchannel_pool", 1),
            ("arborist.lane", lane.value),
            ("grpc.initial_reconnect_backoff_ms", max(first_ms, 100)),
            ("grpc.min_reconnect_backoff_ms", max(first_ms, 100)),
            ("grpc.max_reconnect_backoff_ms", max(max_ms, 100)),
        ]


@dataclass(frozen=True, slots=True)
class WorkerProtocol(Generic[CommandT, AnswerT, InfoT]):
    """What differs between target and draft workers.

    Attributes:
        wire: Their streams.
        get_info: Asks what a worker holds, within a timeout in seconds.
        worker_of: The part of the answer both kinds have.
        release: Message that frees a session: (command_id, session_id).
        patient: Whether a deadline may pass while the worker is at work: nothing goes on without a
            target, and all its sessions would begin anew; without a draft a round just goes on.
    """

    wire: StreamWire[CommandT, AnswerT]
    get_info: Callable[[grpc.aio.Channel, float], Awaitable[InfoT]]
    worker_of: Callable[[InfoT], WorkerInfo]
    release: Callable[[int, str], CommandT]
    patient: bool


class WorkerConnection(Generic[CommandT, AnswerT, InfoT]):
    """Keeps both lanes of one worker attached until closed.

    Attributes:
        address: host:port.
        refusing: Whether the worker refuses new sessions, as far as known.
    """

    def __init__(
        self,
        protocol: WorkerProtocol[CommandT, AnswerT, InfoT],
        address: str,
        controller_id: str,
        settings: ConnectionSettings,
        on_change: Callable[[], None],
    ) -> None:
        """Prepares; `start` connects.

        Args:
            protocol: Kind of worker.
            address: host:port.
            controller_id: Scope of our session ids.
            settings: Times and sizes.
            on_change: Called whenever the worker came, went or changed.
        """
        self._protocol = protocol
        self._controller_id = controller_id
        self._settings = settings
        self._on_change = on_change
        self._channels: dict[StreamLane, grpc.aio.Channel] = {}
        self._streams: dict[StreamLane, CommandStream[CommandT, AnswerT]] = {}
        self._info: InfoT | None = None
        self._costs: CostTable | None = None
        self._worker_id = ""
        self._releases: dict[str, None] = {}
        self._told = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._last_failure = ""
        self._expects_loss = False
        self._num_late = 0
        self.address = address
        self.refusing = False

    @property
    def info(self) -> InfoT | None:
        """Returns what the worker said last; None before it ever answered."""
        return self._info

    @property
    def costs(self) -> CostTable | None:
        """Returns what its forwards take, as it said last; None when it did not."""
        return self._costs

    @property
    def attached(self) -> bool:
        """Returns whether both lanes are up."""
        return len(self._streams) == len(StreamLane)

    @property
    def usable(self) -> bool:
        """Returns whether a new session may try this worker."""
        return (
            self.attached
            and not self.refusing
            and not any(stream.silent for stream in self._streams.values())
        )

    @property
    def num_late(self) -> int:
        """Returns results that came after their deadline and were dropped."""
        return self._num_late + sum(stream.num_late for stream in self._streams.values())

    def start(self) -> None:
        """Connects in the background and stays connected; needs a running event loop."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._run(), name=f"{self._protocol.wire.kind}-{self.address}"
            )

    async def aclose(self) -> None:
        """Disconnects once sessions were freed; what is pending fails with UnavailableError."""
        self._expects_loss = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RELEASE_S):
                while self._releases and self.attached:
                    self._told.clear()
                    await self._told.wait()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._detach()
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))
        self._channels.clear()

    async def ask(
        self, lane: StreamLane, build: BuildCommand[CommandT], deadline_s: float
    ) -> list[Reply[AnswerT]]:
        """Sends a command on a lane and waits; see `CommandStream.ask`."""
        return await self._stream(lane).ask(build, deadline_s)

    async def ask_together(
        self, lane: StreamLane, builds: Sequence[BuildCommand[CommandT]], deadline_s: float
    ) -> list[list[Reply[AnswerT]]]:
        """Sends commands in one frame and waits; see `CommandStream.ask_together`."""
        return await self._stream(lane).ask_together(builds, deadline_s)

    def release(self, session_id: str) -> None:
        """Frees a session; after a lost stream it is said again, unless the worker is new."""
        self._releases[session_id] = None
        self._tell_release(session_id)

    def _stream(self, lane: StreamLane) -> CommandStream[CommandT, AnswerT]:
        stream = self._streams.get(lane)
        if stream is None:
            raise UnavailableError(f"the {self._protocol.wire.kind} worker is not connected")
        return stream

    # ---- staying connected -----------------------------------------------------------------

    async def _run(self) -> None:
        pause_s = self._settings.backoff_first_s
        while True:
            try:
                await self._attach()
                pause_s = self._settings.backoff_first_s
                await self._watch()
                await self._note_loss()
            except ArboristError as error:
                self._note(error.message, loud=isinstance(error, MismatchError))
            finally:
                await self._detach()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, self._settings.backoff_max_s)

    async def _attach(self) -> None:
        info = await self._ask_info(self._settings.connect_timeout_s)
        worker = self._protocol.worker_of(info)
        for lane in StreamLane:
            attach = self._attach_message(lane, worker)
            self._streams[lane] = await open_stream(
                self._protocol.wire,
                self._channel(lane),
                attach,
                self._settings.connect_timeout_s,
                self._patience(),
            )
        ids = {stream.attached.worker_id for stream in self._streams.values()}
        if ids != {worker.worker_id}:
            raise UnavailableError(f"the {self._protocol.wire.kind} worker was just replaced")
        if worker.worker_id != self._worker_id:
            self._releases.clear()  # A new process knows none of our sessions.
        self._worker_id = worker.worker_id
        self._take_info(info)
        for session_id in list(self._releases):
            self._tell_release(session_id)
        _log.info("%s worker %s is connected", self._protocol.wire.kind, self.address)
        self._last_failure, self._expects_loss = "", False
        self._on_change()

    async def _watch(self) -> None:
        """Returns when a lane is lost; until then keeps load and draining fresh."""
        lost = [stream.lost for stream in self._streams.values()]
        while True:
            done, _ = await asyncio.wait(
                lost, timeout=self._settings.refresh_s, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return
            try:
                self._take_info(await self._ask_info(self._settings.connect_timeout_s))
            except ArboristError:
                for stream in self._streams.values():
                    stream.silent = True
            else:
                for stream in self._streams.values():
                    stream.silent = False
            self._on_change()

    def _patience(self) -> Patience | None:
        if not self._protocol.patient:
            return None
        settings = self._settings
        return Patience(self._is_alive, settings.max_extensions, settings.max_extra_s)

    async def _is_alive(self) -> bool:
        try:
            self._take_info(await self._ask_info(self._settings.probe_timeout_s))
        except (ArboristError, grpc.aio.UsageError):  # The latter: the channel is closed.
            return False
        return True

    async def _detach(self) -> None:
        streams = list(self._streams.values())
        self._num_late = self.num_late  # In one step: a sum that falls and rises counts twice.
        self._streams.clear()
        for stream in streams:
            await stream.aclose()
        if streams:
            self._on_change()

    async def _ask_info(self, timeout_s: float) -> InfoT:
        try:
            return await self._protocol.get_info(self._channel(StreamLane.ROUND), timeout_s)
        except grpc.aio.AioRpcError as error:
            raise error_from_call(error) from None

    def _take_info(self, info: InfoT) -> None:
        self._info = info
        worker = self._protocol.worker_of(info)
        self._costs = CostTable(worker.row_costs, worker.session_ms) if worker.row_costs else None
        self.refusing = worker.draining

    def _attach_message(self, lane: StreamLane, worker: WorkerInfo) -> Attach:
        # The digest it just told us: it cannot be swapped for another model in between.
        digest = worker.model.digest
        if self._protocol.wire.kind == "target":
            return Attach(self._controller_id, lane, target_digest=digest)
        return Attach(self._controller_id, lane, draft_digest=digest)

    @property
    def control_channel(self) -> grpc.aio.Channel | None:
        """Returns the channel for calls that are no commands; None without a connection."""
        return self._channels.get(StreamLane.ROUND)

    def _channel(self, lane: StreamLane) -> grpc.aio.Channel:
        if lane not in self._channels:
            options = self._settings.channel_options(lane)
            self._channels[lane] = grpc.aio.insecure_channel(self.address, options=options)
        return self._channels[lane]

    def _tell_release(self, session_id: str) -> None:
        stream = self._streams.get(StreamLane.ROUND)
        if stream is not None:
            stream.tell(
                lambda command_id: self._protocol.release(command_id, session_id),
                functools.partial(self._released, session_id),
            )

    def _released(self, session_id: str) -> None:
        self._releases.pop(session_id, None)
        self._told.set()

    async def _note_loss(self) -> None:
        """Says why a lane was lost; a worker that stopped as it was told to is no failure."""
        lost = next(stream for stream in self._streams.values() if stream.lost.done())
        try:
            # A lost stream sends nothing any more and says why.
            await lost.ask(lambda command_id: self._protocol.release(command_id, ""), 0.0)
        except ArboristError as error:
            self._expects_loss = self._expects_loss or error.message.endswith(_STOPPED)
            self._note(error.message)

    def _note(self, failure: str, loud: bool = False) -> None:
        if failure != self._last_failure:
            self._last_failure = failure
            level = logging.INFO if self._expects_loss else logging.WARNING
            level = logging.ERROR if loud else level
            _log.log(level, "%s worker %s: %s", self._protocol.wire.kind, self.address, failure)
