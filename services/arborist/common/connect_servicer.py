"""The handler of a worker's Connect stream, the same for both workers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

import grpc

from arborist.common.attach import Attach, Attached
from arborist.common.command import Command
from arborist.common.errors import grpc_status, internal_error
from arborist.common.result_stream import ResultStream
from arborist.common.worker import Worker
from arborist.core.errors import (
    ArboristError,
    DeadlineError,
    InvalidArgumentError,
    UnavailableError,
)

_log = logging.getLogger(__name__)

ParametersT = ParamSpec("ParametersT")
ValueT = TypeVar("ValueT")


class FrameCodec(Protocol):
    """Frames of one service, as the handler needs them."""

    def read_attach(self, frame: Any) -> Attach | None:
        """Returns the frame's Attach, or None when it carries something else."""
        ...

    def read_commands(self, frame: Any) -> Iterable[Any] | None:
        """Returns the frame's command messages, or None when it carries something else."""
        ...

    def read_command(self, message: Any, controller_id: str) -> Command[Any, Any]:
        """Returns a command; raises ArboristError when it is malformed."""
        ...

    def write_attached(self, attached: Attached) -> Any:
        """Returns the answering frame."""
        ...

    def write_answer(
        self, command_id: int, answer: object, queue_ms: float, compute_ms: float
    ) -> list[Any]:
        """Returns the result messages of one answer."""
        ...

    def write_frame(self, results: list[Any]) -> Any:
        """Returns a frame of result messages."""
        ...

    def expected_digest(self, attach: Attach) -> str:
        """Returns the digest the controller expects of this worker's model; empty = any."""
        ...


class ConnectHandler:
    """Attaches streams to a worker and carries their frames."""

    def __init__(self, worker: Worker[Any, Any], codec: FrameCodec) -> None:
        self._worker = worker
        self._codec = codec

    async def connect(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Serves one stream until either side ends it.

        Raises:
            grpc.aio.AbortError: The stream broke the protocol; the status says how.
        """
        await guarded(self._serve)(context)

    async def _serve(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        worker, limits = self._worker, self._worker.limits
        attach = await self._read_attach(context)
        worker.check_attach(attach, self._codec.expected_digest(attach))
        stream = ResultStream(
            attach,
            encode=self._codec.write_answer,
            make_frame=self._codec.write_frame,
            write=context.write,
            max_frame_bytes=limits.max_frame_bytes,
            max_outbox_bytes=limits.max_outbox_bytes,
        )
        attached = worker.attach(stream)
        writer: asyncio.Task[None] | None = None
        try:
            await context.write(self._codec.write_attached(attached))
            writer = asyncio.create_task(stream.run_writer())
            writer.add_done_callback(partial(_end_unwritable, stream))
            await self._read_commands(context, stream)
            # The peer sends no more; what is ready it may still want, if it reads at all.
            stream.finish()
            await asyncio.wait({writer}, timeout=limits.flush_timeout_s)
        except asyncio.CancelledError:
            if stream.end_error is None:
                raise
            raise stream.end_error from None  # Cancelled by ourselves, to end the stream.
        finally:
            # Here and nowhere else: a lost peer shows as one of several exceptions.
            stream.close()
            worker.detach(stream)
            await _cancel(writer)

    async def _read_attach(self, context: grpc.aio.ServicerContext[Any, Any]) -> Attach:
        timeout_s = self._worker.limits.attach_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                frame = await context.read()
        except TimeoutError:
            raise DeadlineError(f"no Attach within {timeout_s:g} s") from None
        attach = None if frame is grpc.aio.EOF else self._codec.read_attach(frame)
        if attach is None:
            raise InvalidArgumentError("frame", "no attach", "an Attach, first on every stream")
        return attach

    async def _read_commands(
        self, context: grpc.aio.ServicerContext[Any, Any], stream: ResultStream
    ) -> None:
        worker, codec, controller_id = self._worker, self._codec, stream.attach.controller_id
        max_commands = worker.limits.max_frame_commands
        while (frame := await context.read()) is not grpc.aio.EOF:
            messages = codec.read_commands(frame)
            if messages is None:
                raise InvalidArgumentError("frame", "no commands", "commands, after the Attach")
            commands: list[Command[Any, Any]] = []
            count = 0
            for message in messages:
                count += 1
                if count > max_commands:
                    break
                try:
                    commands.append(codec.read_command(message, controller_id))
                except ArboristError as error:
                    stream.refuse(message.command_id, error)
            if not 1 <= count <= max_commands:
                raise InvalidArgumentError("commands", count, f"1..{max_commands} in a frame")
            worker.submit(stream, commands)
            await stream.wait_for_room()


def _end_unwritable(stream: ResultStream, writer: asyncio.Task[None]) -> None:
    """Ends a stream that cannot answer any more; without this its reader would not notice."""
    if not writer.cancelled() and writer.exception() is not None:
        stream.end(UnavailableError("results could not be sent"))


async def _cancel(task: asyncio.Task[None] | None) -> None:
    """Ends a task and waits for it, whatever it ended with."""
    if task is not None:
        task.cancel()
        # What a writer fails with is a lost peer; the reader sees that too.
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


def guarded(
    method: Callable[ParametersT, Awaitable[ValueT]],
) -> Callable[ParametersT, Awaitable[ValueT]]:
    """Makes a handler method `(self, request, context)` end in the error table's statuses."""

    async def call(*args: ParametersT.args, **kwargs: ParametersT.kwargs) -> ValueT:
        context: Any = args[-1]
        try:
            return await method(*args, **kwargs)
        except ArboristError as error:
            await context.abort_with_status(grpc_status(error))
        except (grpc.aio.AbortError, grpc.aio.BaseError):
            raise
        except Exception:  # noqa: BLE001 - a caller gets a fixed text, the log gets the rest
            hidden = internal_error()
            _log.exception("incident %s", hidden.metadata["incident"])
            await context.abort_with_status(grpc_status(hidden))
        raise RuntimeError("unreachable: abort raises")

    return call
