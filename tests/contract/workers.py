"""Workers over fake engines behind gRPC on the loopback, and a client that sends raw frames."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from tests.fakes import FakeDraftEngine, FakeTargetEngine, feature_rows, state_of

from arborist.common import draft_wire, target_wire
from arborist.common.attach import Attach, Attached, StreamLane
from arborist.common.command import Reply
from arborist.common.errors import error_from_call
from arborist.common.server import MAX_INTERNAL_MESSAGE_BYTES, RpcServer, channel_options
from arborist.common.worker import Worker
from arborist.common.worker_limits import WorkerLimits
from arborist.core.engine import (
    DraftOpen,
    Expand,
    ExpandTree,
    Extend,
    Prefill,
    TargetOpen,
    Verify,
)
from arborist.core.errors import ArboristError
from arborist.core.features import FeatureSpec
from arborist.core.prefix import PrefixCounts
from arborist.core.sampling import SamplingParams
from arborist.core.stamp import Stamp
from arborist.draft.servicer import DraftServicer, draft_worker
from arborist.target.servicer import TargetServicer, target_worker
from arborist.v1 import draft_pb2_grpc, target_pb2_grpc

TARGET = "arborist.v1.TargetService"
DRAFT = "arborist.v1.DraftService"
PROMPT = [3, 1, 4, 1, 5]


@dataclass
class Recorder:
    """Span sink and metrics in one; keeps everything."""

    spans: list[tuple[str, str, int, int, dict[str, Any]]] = field(default_factory=list)
    forwards: list[tuple[str, int, int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    sessions: int = 0
    kv_reserved_tokens: int = 0
    queued_rows: int = 0
    prefix_counts: PrefixCounts = field(default_factory=PrefixCounts)

    def record(self, name, traceparent, start_ns, end_ns, attributes) -> None:
        """Keeps a span."""
        self.spans.append((name, traceparent, start_ns, end_ns, dict(attributes)))

    def set_queued_rows(self, count: int) -> None:
        """Keeps the number."""
        self.queued_rows = count

    def set_sessions(self, count: int) -> None:
        """Keeps the number."""
        self.sessions = count

    def set_kv_reserved_tokens(self, count: int) -> None:
        """Keeps the number."""
        self.kv_reserved_tokens = count

    def observe_forward(self, kind: str, num_rows: int, num_tokens: int, seconds: float) -> None:
        """Keeps the sizes."""
        self.forwards.append((kind, num_rows, num_tokens))

    def count_error(self, reason: str) -> None:
        """Keeps the reason."""
        self.errors.append(reason)

    def observe_prefix_cache(self, counts: PrefixCounts) -> None:
        """Keeps the newest counts."""
        self.prefix_counts = counts


class Stream:
    """One Connect stream of a test controller."""

    def __init__(self, call: Any, wire: Any) -> None:
        self.call = call
        self._wire = wire
        self._replies: list[Reply[Any]] = []
        self._next_id = 0
        self.frames: list[Any] = []

    def next_id(self) -> int:
        """Returns a fresh command id."""
        self._next_id += 1
        return self._next_id

    async def attach(self, attach: Attach) -> Attached:
        """Attaches; raises what the worker refused with."""
        try:
            await self.call.write(self._wire.attach_frame(attach))
            frame = await self.call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            raise await self.end() from None
        if frame is grpc.aio.EOF:
            raise await self.end()
        attached = self._wire.read_frame(frame)
        assert isinstance(attached, Attached)
        return attached

    async def send(self, *messages: Any) -> None:
        """Sends one frame of commands."""
        await self.call.write(self._wire.command_frame(messages))

    async def replies(self, count: int) -> list[Reply[Any]]:
        """Returns the next results, whatever frames they come in."""
        async with asyncio.timeout(10.0):
            while len(self._replies) < count:
                frame = await self.call.read()
                if frame is grpc.aio.EOF:
                    raise await self.end()
                self.frames.append(frame)
                self._replies += self._wire.read_frame(frame)
        taken, self._replies = self._replies[:count], self._replies[count:]
        return taken

    async def ask(self, *messages: Any) -> list[Any]:
        """Sends one frame and returns the outcomes in the order of its commands."""
        await self.send(*messages)
        replies = {one.command_id: one.outcome for one in await self.replies(len(messages))}
        return [replies[message.command_id] for message in messages]

    async def end(self) -> ArboristError:
        """Returns the error the stream ended with."""
        async with asyncio.timeout(10.0):
            try:
                await self.call.wait_for_connection()
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            except grpc.aio.AioRpcError as error:
                return error_from_call(error)
            code = await self.call.code()
        raise AssertionError(f"the stream ended with {code}")

    async def lose(self) -> None:
        """Cancels the call, as a lost connection does."""
        self.call.cancel()
        await asyncio.gather(self.call.code(), return_exceptions=True)


class Commands:
    """Messages of one session at a target or draft, with ids of one stream."""

    def __init__(self, stream: Stream, session_id: str = "s", epoch: int = 1) -> None:
        self._stream = stream
        self.key = ("", session_id)
        self.session_id = session_id
        self.epoch = epoch

    def stamp(self, tree_id: int, step: int) -> Stamp:
        """Returns a stamp of this incarnation."""
        return Stamp(self.epoch, tree_id, step)

    def open_target(
        self,
        max_length: int = 100,
        dtype: Any = None,
        prompt_length: int = 0,
        end_token_ids: tuple[int, ...] = (),
        json_schema: str | None = None,
        **sampling: Any,
    ) -> Any:
        """Returns an Open for a target."""
        request = TargetOpen(
            SamplingParams(**sampling),
            FeatureSpec(None, dtype),
            max_length,
            16,
            prompt_length,
            end_token_ids,
            json_schema=json_schema,
        )
        return target_wire.open_command(
            self._stream.next_id(), self.session_id, self.epoch, request
        )

    def prefill(
        self,
        tokens: list[int],
        begin: int = 0,
        last: bool = True,
        traceparent: str = "",
        num_logprobs: int | None = None,
    ) -> Any:
        """Returns a Prefill; its step is its first position."""
        work = Prefill(self.key, begin, tokens, last, num_logprobs=num_logprobs)
        return target_wire.prefill_command(
            self._stream.next_id(), self.stamp(0, begin), work, traceparent
        )

    def verify(
        self,
        committed: list[int],
        tokens: tuple[int, ...] = (),
        parents: tuple[int, ...] = (),
        round_index: int = 0,
        traceparent: str = "",
        num_logprobs: int | None = None,
    ) -> Any:
        """Returns a Verify of a tree under the last committed token."""
        work = Verify(
            self.key,
            len(committed),
            committed[-1],
            list(tokens),
            list(parents),
            True,
            True,
            num_logprobs,
        )
        return target_wire.verify_command(
            self._stream.next_id(), self.stamp(round_index + 1, 0), work, traceparent
        )

    def read(self, begin: int, end: int) -> Any:
        """Returns a ReadFeatures."""
        return target_wire.read_features_command(
            self._stream.next_id(), self.session_id, begin, end
        )

    def release_target(self) -> Any:
        """Returns a Release for a target."""
        return target_wire.release_command(self._stream.next_id(), self.session_id)

    def open_draft(self, max_length: int = 100) -> Any:
        """Returns an Open for a draft."""
        return draft_wire.open_command(
            self._stream.next_id(), self.session_id, self.epoch, DraftOpen(max_length)
        )

    def extend(self, committed: list[int], held: int = 0, top_k: int = 4, tree_id: int = 1) -> Any:
        """Returns an Extend with everything committed that the draft does not hold yet."""
        states = [state_of(committed[: at + 1]) for at in range(held, len(committed) - 1)]
        work = Extend(self.key, held, committed[held + 1 :], feature_rows(states), top_k)
        return draft_wire.extend_command(self._stream.next_id(), self.stamp(tree_id, 0), work)

    def expand(self, rows: list[int], top_k: int = 4, tree_id: int = 1, step: int = 1) -> Any:
        """Returns an Expand."""
        work = Expand(self.key, rows, top_k)
        return draft_wire.expand_command(self._stream.next_id(), self.stamp(tree_id, step), work)

    def expand_tree(
        self,
        depth: int = 4,
        top_k: int = 4,
        tree_id: int = 1,
        step: int = 1,
        traceparent: str = "",
        level_span_ids: tuple[int, ...] = (),
    ) -> Any:
        """Returns an ExpandTree."""
        work = ExpandTree(self.key, "eagle2", depth, top_k)
        return draft_wire.expand_tree_command(
            self._stream.next_id(), self.stamp(tree_id, step), work, traceparent, level_span_ids
        )

    def release_draft(self) -> Any:
        """Returns a Release for a draft."""
        return draft_wire.release_command(self._stream.next_id(), self.session_id)


@dataclass
class Served:
    """A worker that listens, its engine, and what it reported."""

    worker: Worker[Any, Any]
    engine: Any
    server: RpcServer
    address: str
    recorder: Recorder
    wire: Any
    stub_type: Any
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def channel(self, max_message_bytes: int = MAX_INTERNAL_MESSAGE_BYTES) -> grpc.aio.Channel:
        """Returns a connection of its own."""
        options = [
            *channel_options(max_message_bytes),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        channel = grpc.aio.insecure_channel(self.address, options=options)
        self.channels.append(channel)
        return channel

    def stub(self) -> Any:
        """Returns a stub on a connection of its own."""
        return self.stub_type(self.channel())

    def raw_stream(self) -> Stream:
        """Returns a stream that has not sent anything."""
        return Stream(self.stub().Connect(), self.wire)

    async def stream(
        self, controller_id: str = "c", lane: StreamLane = StreamLane.ROUND, **attach: Any
    ) -> Stream:
        """Returns an attached stream."""
        stream = self.raw_stream()
        await stream.attach(Attach(controller_id, lane, **attach))
        return stream


@asynccontextmanager
async def served_target(
    engine: FakeTargetEngine | None = None, **limits: Any
) -> AsyncIterator[Served]:
    """Serves a fake target."""
    engine, recorder = engine or FakeTargetEngine(), Recorder()
    worker = target_worker(
        engine,
        limits=WorkerLimits(**limits),
        version="0.0-test",
        spans=recorder,
        metrics=recorder,
    )
    server = RpcServer([TARGET])
    servicer = TargetServicer(worker, lambda: server.set_serving(False))
    target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server.grpc_server)
    stub = target_pb2_grpc.TargetServiceStub
    async with _running(worker, engine, server, recorder, target_wire, stub) as served:
        yield served


@asynccontextmanager
async def served_draft(
    engine: FakeDraftEngine | None = None, **limits: Any
) -> AsyncIterator[Served]:
    """Serves a fake draft that is always right."""
    engine, recorder = engine or FakeDraftEngine(accuracy=1.0), Recorder()
    worker = draft_worker(
        engine,
        limits=WorkerLimits(**limits),
        version="0.0-test",
        spans=recorder,
        metrics=recorder,
    )
    server = RpcServer([DRAFT])
    servicer = DraftServicer(
        worker, engine.feature_spec, engine.feature_width, lambda: server.set_serving(False)
    )
    draft_pb2_grpc.add_DraftServiceServicer_to_server(servicer, server.grpc_server)
    stub = draft_pb2_grpc.DraftServiceStub
    async with _running(worker, engine, server, recorder, draft_wire, stub) as served:
        yield served


@asynccontextmanager
async def _running(
    worker: Worker[Any, Any],
    engine: Any,
    server: RpcServer,
    recorder: Recorder,
    wire: Any,
    stub_type: Any,
) -> AsyncIterator[Served]:
    worker.start()
    address = await server.start("127.0.0.1", 0)
    await server.set_serving(True)
    served = Served(worker, engine, server, address, recorder, wire, stub_type)
    try:
        yield served
    finally:
        engine.behaviour.gate.set()
        for channel in served.channels:
            await channel.close()
        await server.stop(0.0)
        await worker.stop()


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Waits for something another task or thread does; fails if it does not come."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - looks at what other tasks do
            await asyncio.sleep(0.002)
