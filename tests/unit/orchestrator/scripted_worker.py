"""A target worker that does what a test says, over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import grpc
import grpc.aio

from arborist.common import target_wire, wire
from arborist.common.attach import Attached, StreamLane
from arborist.common.command import Opened
from arborist.common.server import server_options
from arborist.common.worker_info import WorkerInfo
from arborist.core.engine import ModelInfo
from arborist.v1 import target_pb2 as pb
from arborist.v1 import target_pb2_grpc as pb_grpc

MODEL = ModelInfo("scripted", "digest", 64, 4, 1, 512, 1, "float32", (1,))

UNKNOWN_CALL = -1
"""`known_tokens` of a worker that knows no FindPrefix."""

Answer = Callable[[pb.TargetCommand], Awaitable[list[pb.TargetResult]]]


def opened(command: pb.TargetCommand) -> pb.TargetResult:
    """A successful answer to Open, whatever was asked."""
    return target_wire.target_results(command.command_id, Opened(1), 0.5, 1.5, 1 << 18)[0]


async def open_at_once(command: pb.TargetCommand) -> list[pb.TargetResult]:
    """Answers everything with Opened."""
    return [opened(command)]


@dataclass
class ScriptedTarget(pb_grpc.TargetServiceServicer):
    """Answers commands as told; remembers frames by lane."""

    answer: Answer = open_at_once
    worker_id: str = "w1"
    draining: bool = False
    silent_info: bool = False
    known_tokens: int | None = 0
    kv_capacity_tokens: int = 4096
    digest: str = MODEL.digest
    frames: dict[StreamLane, list[list[pb.TargetCommand]]] = field(default_factory=dict)
    peers: dict[StreamLane, str] = field(default_factory=dict)
    attaches: int = 0
    dropped: asyncio.Event = field(default_factory=asyncio.Event)

    async def GetInfo(self, request, context):  # noqa: N802 - protobuf's name
        """Says what it holds."""
        if self.silent_info:
            await asyncio.sleep(60)
        capacity = self.kv_capacity_tokens
        model = replace(MODEL, digest=self.digest)
        info = WorkerInfo(self.worker_id, "0", "cpu", model, capacity, 0, 0, 0, self.draining)
        return pb.TargetServiceGetInfoResponse(info=wire.worker_info_to_pb(info))

    async def FindPrefix(self, request, context):  # noqa: N802 - protobuf's name
        """Says what it knows, or nothing at all."""
        if self.known_tokens is None:
            await asyncio.sleep(60)
        if self.known_tokens == UNKNOWN_CALL:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED)
        return pb.TargetServiceFindPrefixResponse(known_tokens=self.known_tokens)

    async def Drain(self, request, context):  # noqa: N802 - protobuf's name
        """No controller asks for this."""
        raise NotImplementedError

    # The stubs know only the kind that returns an iterator, not the one that writes by itself.
    async def Connect(  # type: ignore[override]  # noqa: N802 - protobuf's name
        self, request_iterator, context
    ):
        """Serves one stream."""
        dropped = self.dropped
        first = await context.read()
        attach = wire.attach_from_pb(first.attach)
        self.attaches += 1
        self.peers[attach.lane] = context.peer()
        await context.write(target_wire.attached_frame(Attached(self.worker_id)))
        tasks: set[asyncio.Task] = set()
        writing = asyncio.Lock()
        try:
            while (frame := await _first(context.read(), dropped)) is not grpc.aio.EOF:
                commands = list(frame.commands.commands)
                self.frames.setdefault(attach.lane, []).append(commands)
                for command in commands:
                    task = asyncio.create_task(self._reply(context, writing, command))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
        finally:
            for task in tasks:
                task.cancel()

    async def _reply(self, context, writing: asyncio.Lock, command) -> None:
        for result in await self.answer(command):
            async with writing:
                await context.write(target_wire.result_frame([result]))

    def drop_streams(self) -> None:
        """Breaks every stream, as a lost connection would."""
        self.dropped.set()
        self.dropped = asyncio.Event()


async def _first(read, dropped: asyncio.Event):
    """Reads a frame; end of file once the streams are dropped."""
    reading = asyncio.ensure_future(read)
    dropping = asyncio.ensure_future(dropped.wait())
    try:
        await asyncio.wait([reading, dropping], return_when=asyncio.FIRST_COMPLETED)
        return grpc.aio.EOF if dropping.done() else reading.result()
    finally:
        reading.cancel()
        dropping.cancel()


@asynccontextmanager
async def serving(servicer: ScriptedTarget, port: int = 0) -> AsyncIterator[str]:
    """Serves on a free port of the loopback."""
    server = grpc.aio.server(options=server_options(16 << 20))
    pb_grpc.add_TargetServiceServicer_to_server(servicer, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        await server.stop(None)
