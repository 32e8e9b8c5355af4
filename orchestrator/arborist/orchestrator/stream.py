"""One lane of a worker: a long-lived bidirectional `Connect` stream that carries commands.

Every command that became ready in one tick of the event loop travels in one frame. There is one
writer and one reader; a command costs a future, never a task or a timer. A stream lives once:
when it is lost everything pending fails and a new stream takes its place.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

import grpc
import grpc.aio

from arborist.common.attach import PROTOCOL_VERSION, Attach, Attached
from arborist.common.command import Reply
from arborist.common.errors import error_from_call
from arborist.core.errors import ArboristError, DeadlineError, MismatchError, UnavailableError

_log = logging.getLogger(__name__)

CommandT = TypeVar("CommandT")
AnswerT = TypeVar("AnswerT")

# The contract allows 256; but features come in parts of 256 KiB, and 16 MiB is the message limit.
_MAX_FRAME_COMMANDS = 32
# How late a deadline may be noticed; the shortest is ten times as long.
_SWEEP_S = 0.02

BuildCommand: TypeAlias = Callable[[int], CommandT]
"""Builds the message of a command once its id is known."""


@dataclass(frozen=True, slots=True)
class StreamWire(Generic[CommandT, AnswerT]):
    """What a stream needs to know of one worker kind's protocol.

    Attributes:
        kind: "target" or "draft", for messages.
        connect: Starts the call.
        attach_frame: First frame.
        command_frame: Frame of commands.
        read_frame: What a frame from the worker carries.
    """

    kind: str
    connect: Callable[[grpc.aio.Channel], grpc.aio.StreamStreamCall[Any, Any]]
    attach_frame: Callable[[Attach], Any]
    command_frame: Callable[[Iterable[CommandT]], Any]
    read_frame: Callable[[Any], Attached | list[Reply[AnswerT]]]


@dataclass(frozen=True, slots=True)
class Patience:
    """What becomes of a command whose deadline passed while its worker is at work.

    A deadline comes from times seen so far. On a worker that many sessions reach at once, or on a
    machine that is busy with something else, everything takes longer than that: to give such a
    worker up would only add the prompts of all its sessions to what it has to do.

    Attributes:
        is_alive: Asks the worker for a sign of life; used when it sent no frame either.
        max_extensions: How often a command gets its time again.
        max_extra_s: Once it got so much more, in seconds, it gets no further time: that a worker's
            event loop answers does not say that its forwards end.
    """

    is_alive: Callable[[], Awaitable[bool]]
    max_extensions: int
    max_extra_s: float


@dataclass(slots=True)
class _Asked(Generic[AnswerT]):
    """A command whose caller waits."""

    answer: asyncio.Future[list[Reply[AnswerT]]]
    deadline_s: float
    expires_s: float
    frames_before: int
    parts: list[Reply[AnswerT]] = field(default_factory=list)
    num_extensions: int = 0

    def is_exhausted(self, patience: Patience) -> bool:
        """Returns whether it gets no more time."""
        extra_s = self.num_extensions * self.deadline_s
        return self.num_extensions >= patience.max_extensions or extra_s >= patience.max_extra_s


class CommandStream(Generic[CommandT, AnswerT]):
    """An attached stream; make one with `open_stream`.

    Attributes:
        attached: What the worker answered to Attach.
        lost: Done once the stream is over; never fails.
        num_late: Results that came after their deadline and were dropped.
    """

    def __init__(
        self,
        wire: StreamWire[CommandT, AnswerT],
        call: grpc.aio.StreamStreamCall[Any, Any],
        attached: Attached,
        patience: Patience | None = None,
    ) -> None:
        """Starts reader and writer.

        Args:
            wire: Protocol of the worker.
            call: The call, attached.
            attached: The worker's answer.
            patience: With a worker that is late but alive; None = a deadline is final.
        """
        self._wire = wire
        self._patience = patience
        self._probe: asyncio.Task[None] | None = None
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._asked: dict[int, _Asked[AnswerT]] = {}
        self._told: dict[int, Callable[[], None]] = {}
        self._outbox: list[CommandT] = []
        self._wake: asyncio.Future[None] | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._failure: str | None = None
        self._num_frames = 0
        self.attached = attached
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.num_late = 0
        # Set by a deadline that passed without any frame since its command; cleared by a frame.
        self.silent = False
        self._tasks = [
            self._loop.create_task(self._read(), name=f"{wire.kind}-reader"),
            self._loop.create_task(self._write(), name=f"{wire.kind}-writer"),
        ]

    async def ask(self, build: BuildCommand[CommandT], deadline_s: float) -> list[Reply[AnswerT]]:
        """Sends a command and waits for its answer.

        Args:
            build: Makes the message from its command id.
            deadline_s: Seconds the worker has, and again while it shows that it is at work, as far
                as patience goes; a result after that is dropped and counted.
        Returns:
            The parts of the answer in order, at least one; only the last may hold an error.
        Raises:
            DeadlineError: The worker did not answer in time.
            UnavailableError: The stream is lost.
        Cancellation: the answer is dropped when it comes.
        """
        command_id, answer = self._post(build, deadline_s)
        try:
            return await answer
        finally:
            del self._asked[command_id]

    async def ask_together(
        self, builds: Sequence[BuildCommand[CommandT]], deadline_s: float
    ) -> list[list[Reply[AnswerT]]]:
        """Sends commands in one frame and waits until the last one is answered.

        The worker answers them in their order, so that the wait is for one wake-up.

        Args:
            builds: Make the messages; at least one.
            deadline_s: Seconds the worker has for all of them.
        Returns:
            What `ask` returns, for each command.
        Raises:
            DeadlineError: The worker did not answer in time.
            UnavailableError: The stream is lost.
        Cancellation: the answers are dropped when they come.
        """
        posted: list[tuple[int, asyncio.Future[list[Reply[AnswerT]]]]] = []
        try:
            for build in builds:
                posted.append(self._post(build, deadline_s))
            await posted[-1][1]
            return [await answer for _, answer in posted]
        finally:
            for command_id, answer in posted:
                del self._asked[command_id]
                if not answer.cancel() and not answer.cancelled():
                    answer.exception()  # Seen: one of them is raised, the others say the same.

    def _post(
        self, build: BuildCommand[CommandT], deadline_s: float
    ) -> tuple[int, asyncio.Future[list[Reply[AnswerT]]]]:
        if self._failure is not None:
            raise UnavailableError(self._failure)
        command_id = next(self._ids)
        command = build(command_id)
        asked: _Asked[AnswerT] = _Asked(
            self._loop.create_future(),
            deadline_s,
            self._loop.time() + deadline_s,
            self._num_frames,
        )
        self._asked[command_id] = asked
        if self._sweep is None:
            self._sweep = self._loop.call_later(_SWEEP_S, self._expire)
        self._send(command)
        return command_id, asked.answer

    def tell(self, build: BuildCommand[CommandT], done: Callable[[], None]) -> None:
        """Sends a command nobody waits for.

        Args:
            build: Makes the message from its command id.
            done: Called once the worker answered, whatever it said; never when the stream is lost.
        """
        if self._failure is None:
            command_id = next(self._ids)
            self._told[command_id] = done
            self._send(build(command_id))

    async def aclose(self) -> None:
        """Ends the stream; whoever still waits gets UnavailableError."""
        self._fail(f"the {self._wire.kind} worker was disconnected")
        tasks = [*self._tasks, *([] if self._probe is None else [self._probe])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- out -------------------------------------------------------------------------------

    def _send(self, command: CommandT) -> None:
        self._outbox.append(command)
        if self._wake is not None and not self._wake.done():
            # The writer resumes after the callbacks that are ready now, so what they send joins.
            self._wake.set_result(None)

    async def _write(self) -> None:
        try:
            while True:
                if not self._outbox:
                    self._wake = self._loop.create_future()
                    await self._wake
                batch = self._outbox[:_MAX_FRAME_COMMANDS]
                del self._outbox[:_MAX_FRAME_COMMANDS]
                await self._call.write(self._wire.command_frame(batch))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            self._fail(f"the {self._wire.kind} worker is gone")

    # ---- in --------------------------------------------------------------------------------

    async def _read(self) -> None:
        reason = f"the {self._wire.kind} worker is gone"
        try:
            while True:
                frame = await self._call.read()
                if frame is grpc.aio.EOF:
                    reason = f"the {self._wire.kind} worker ended the stream"
                    break
                self._num_frames += 1
                self.silent = False
                replies = self._wire.read_frame(frame)
                if isinstance(replies, Attached):
                    continue
                for reply in replies:
                    self._take(reply)
        except grpc.aio.AioRpcError as error:
            reason = f"{reason}: {error_from_call(error).message}"
        except ArboristError as error:
            reason = f"the {self._wire.kind} worker sent a frame that breaks the contract: {error}"
        finally:
            self._fail(reason)

    def _take(self, reply: Reply[AnswerT]) -> None:
        asked = self._asked.get(reply.command_id)
        if asked is None:
            done = self._told.pop(reply.command_id, None)
            if done is not None:
                done()
            else:
                self.num_late += 1
            return
        asked.parts.append(reply)
        if not reply.more and not asked.answer.done():
            asked.answer.set_result(asked.parts)

    def _expire(self) -> None:
        """Looks after what is overdue; one timer for all commands is cheaper than one for each."""
        self._sweep = self._loop.call_later(_SWEEP_S, self._expire) if self._asked else None
        doubtful = False
        for asked in self._overdue():
            if self._patience is None or asked.is_exhausted(self._patience):
                self._give_up(asked)
            elif asked.frames_before != self._num_frames:
                self._extend(asked)
            else:
                doubtful = True
        if doubtful and self._patience is not None and self._probe is None:
            probing = self._ask_for_life(self._patience)
            self._probe = self._loop.create_task(probing, name=f"{self._wire.kind}-probe")

    def _overdue(self) -> list[_Asked[AnswerT]]:
        now_s = self._loop.time()
        waiting = self._asked.values()
        return [one for one in waiting if one.expires_s <= now_s and not one.answer.done()]

    async def _ask_for_life(self, patience: Patience) -> None:
        """Decides over what is overdue at a worker that says nothing."""
        try:
            alive = await patience.is_alive()
        except Exception:  # noqa: BLE001 - whatever it is, what is overdue must be decided
            _log.exception("asking the %s worker for a sign of life failed", self._wire.kind)
            alive = False
        finally:
            self._probe = None
        for asked in self._overdue():
            came = asked.frames_before != self._num_frames
            if (alive or came) and not asked.is_exhausted(patience):
                self._extend(asked)
            else:
                self._give_up(asked)

    def _extend(self, asked: _Asked[AnswerT]) -> None:
        asked.num_extensions += 1
        asked.frames_before = self._num_frames
        asked.expires_s = self._loop.time() + asked.deadline_s

    def _give_up(self, asked: _Asked[AnswerT]) -> None:
        self.silent = self.silent or self._num_frames == asked.frames_before
        kind, limit_s = self._wire.kind, asked.deadline_s * (1 + asked.num_extensions)
        asked.answer.set_exception(
            DeadlineError(f"the {kind} worker did not answer within {round(limit_s * 1e3)} ms")
        )

    def _fail(self, reason: str) -> None:
        if self._failure is not None:
            return
        self._failure = reason
        self._call.cancel()
        if self._sweep is not None:
            self._sweep.cancel()
        self._outbox.clear()
        self._told.clear()
        for asked in self._asked.values():
            if not asked.answer.done():
                # One exception each: a shared one would collect every waiter's traceback.
                asked.answer.set_exception(UnavailableError(reason))
        self.lost.set_result(None)


async def open_stream(
    wire: StreamWire[CommandT, AnswerT],
    channel: grpc.aio.Channel,
    attach: Attach,
    timeout_s: float,
    patience: Patience | None = None,
) -> CommandStream[CommandT, AnswerT]:
    """Connects and attaches.

    Args:
        wire: Protocol of the worker.
        channel: Used by this stream alone, so that lanes never share a connection.
        attach: First message.
        timeout_s: Seconds until the worker must have answered.
        patience: With a worker that is late but alive; None = a deadline is final.
    Returns:
        The stream, ready for commands.
    Raises:
        UnavailableError: Nobody answers there.
        MismatchError: The worker speaks another protocol or holds another model.
        ArboristError: What else the worker refused with.
    """
    call = wire.connect(channel)
    try:
        async with asyncio.timeout(timeout_s):
            await call.write(wire.attach_frame(attach))
            frame = await call.read()
        if frame is grpc.aio.EOF:
            raise UnavailableError(f"the {wire.kind} worker ended the stream")
        attached = wire.read_frame(frame)
        if not isinstance(attached, Attached):
            raise MismatchError(f"the {wire.kind} worker did not answer Attach first")
        if attached.protocol_version != PROTOCOL_VERSION:
            raise MismatchError(
                f"the {wire.kind} worker speaks protocol {attached.protocol_version}, "
                f"this controller {PROTOCOL_VERSION}"
            )
        return CommandStream(wire, call, attached, patience)
    except TimeoutError:
        call.cancel()
        raise UnavailableError(f"the {wire.kind} worker did not answer Attach") from None
    except grpc.aio.AioRpcError as error:
        raise error_from_call(error) from None
    except asyncio.InvalidStateError:
        # The call was over before the first write; its status says why.
        raise UnavailableError(f"the {wire.kind} worker cannot be reached") from None
    except BaseException:
        call.cancel()
        raise
