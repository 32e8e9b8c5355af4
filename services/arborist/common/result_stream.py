"""The sending side of one stream: results go out as soon as they are ready, many in one frame."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from arborist.common.attach import Attach
from arborist.common.errors import internal_error
from arborist.common.job import Job
from arborist.core.errors import ArboristError

_log = logging.getLogger(__name__)


class ResultMessage(Protocol):
    """A protobuf message of one result."""

    def ByteSize(self) -> int:  # noqa: N802 - protobuf's name
        """Returns the encoded size."""
        ...


Encode = Callable[[int, object, float, float], list[Any]]
"""(command_id, answer, queue_ms, compute_ms) to messages."""
MakeFrame = Callable[[list[Any]], Any]
Write = Callable[[Any], Awaitable[None]]


class ResultStream:
    """Outbox and writer of one attached stream. One event loop owns it."""

    def __init__(
        self,
        attach: Attach,
        *,
        encode: Encode,
        make_frame: MakeFrame,
        write: Write,
        max_frame_bytes: int,
        max_outbox_bytes: int,
    ) -> None:
        """Makes a stream that is not being written yet.

        Args:
            attach: Whose stream it is.
            encode: Makes result messages.
            make_frame: Makes a frame of them.
            write: Sends a frame; returns when the next may be sent.
            max_frame_bytes: Bytes of results after which a frame is closed.
            max_outbox_bytes: Bytes of unsent results from which on nothing more shall be read.
        """
        self.attach = attach
        self.end_error: ArboristError | None = None
        """Why the worker ended the stream; None while it did not."""
        self._encode = encode
        self._make_frame = make_frame
        self._write = write
        self._max_frame_bytes = max_frame_bytes
        self._max_outbox_bytes = max_outbox_bytes
        self._outbox: deque[tuple[ResultMessage, int]] = deque()
        self._outbox_bytes = 0
        self._wake: asyncio.Future[None] | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._finished = False
        self._closed = False
        self._handler = asyncio.current_task()

    def answer(self, command_id: int, job: Job) -> None:
        """Sends a job's answer under this command id."""
        if self._closed:
            return
        try:
            results = self._encode(command_id, job.answer, job.queue_ms, job.compute_ms)
        except Exception:  # noqa: BLE001 - the other answers of the batch must go out
            hidden = internal_error()
            _log.exception("incident %s: an answer has no encoding", hidden.metadata["incident"])
            results = self._encode(command_id, hidden, job.queue_ms, job.compute_ms)
        self.send(results)

    def refuse(self, command_id: int, error: ArboristError) -> None:
        """Sends an error for a command that was not taken."""
        if not self._closed:
            self.send(self._encode(command_id, error, 0.0, 0.0))

    def send(self, results: list[ResultMessage]) -> None:
        """Queues result messages and wakes the writer."""
        for result in results:
            size = result.ByteSize()
            self._outbox.append((result, size))
            self._outbox_bytes += size
        if self._outbox_bytes >= self._max_outbox_bytes:
            self._room.clear()
        self._wake_writer()

    async def wait_for_room(self) -> None:
        """Waits until the peer has read enough that more commands may be taken."""
        if not self._room.is_set():
            await self._room.wait()

    async def run_writer(self) -> None:
        """Sends frames until finished and nothing is left; one task does so.

        Raises:
            Exception: A frame could not be sent; whatever gRPC says of that.
        """
        loop = asyncio.get_running_loop()
        while self._outbox or not self._finished:
            if self._outbox:
                await self._write(self._make_frame(self._take()))
            else:
                self._wake = loop.create_future()
                await self._wake
                self._wake = None

    def finish(self) -> None:
        """Lets the writer end once it has sent what is ready."""
        self._finished = True
        self._wake_writer()

    def close(self) -> None:
        """Drops what is unsent and everything that comes."""
        self._closed = True
        self._outbox.clear()
        self._outbox_bytes = 0
        self._room.set()

    def end(self, error: ArboristError) -> None:
        """Ends the stream from the worker's side: its handler stops and reports `error`."""
        if self.end_error is None and not self._closed:
            self.end_error = error
            if self._handler is not None:
                self._handler.cancel()

    def _wake_writer(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _take(self) -> list[ResultMessage]:
        """Takes the results of the next frame: all, up to a size."""
        results: list[ResultMessage] = []
        size = 0
        while self._outbox and (not results or size + self._outbox[0][1] <= self._max_frame_bytes):
            result, result_size = self._outbox.popleft()
            results.append(result)
            size += result_size
        self._outbox_bytes -= size
        if self._outbox_bytes < self._max_outbox_bytes:
            self._room.set()
        return results
