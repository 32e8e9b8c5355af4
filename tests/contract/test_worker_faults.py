"""What a worker does when its engine, its peer or its own stream misbehaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from tests.contract.workers import PROMPT, TARGET, Commands, Served, Stream, served_target, until
from tests.fakes import FakeTargetEngine, continuation

from arborist.common import target_wire
from arborist.common.attach import Attach, StreamLane
from arborist.common.busy_clock import BusyClock
from arborist.common.command import Released
from arborist.common.config import ArboristConfig, parse_config
from arborist.common.errors import error_from_call
from arborist.common.result_stream import ResultStream
from arborist.common.running_worker import RunningWorker, WarmEngine, start_worker
from arborist.common.server import RpcServer, channel_options
from arborist.common.worker_limits import WorkerLimits
from arborist.core.engine import TargetOutcome, TargetWork, Verify, VerifyResult
from arborist.core.errors import (
    ResourceExhaustedError,
    SessionFailedError,
    UnavailableError,
    UnknownSessionError,
)
from arborist.target.servicer import TargetServicer, target_worker
from arborist.v1 import target_pb2 as pb
from arborist.v1 import target_pb2_grpc

ROOT, BONUS = continuation(PROMPT, 2)
COMMITTED = [*PROMPT, ROOT]
_LIMITS = WorkerLimits()


class FaultyTarget(FakeTargetEngine):
    """A target that gives some sessions what no engine should, after everything was committed."""

    def __init__(self) -> None:
        super().__init__()
        self.replaced: dict[str, Any] = {}
        self.dropped = 0

    def run(self, batch: Sequence[TargetWork]) -> list[TargetOutcome]:
        """Runs every item, then replaces outcomes by session id, or loses some."""
        outcomes = super().run(batch)
        for index, work in enumerate(batch):
            if isinstance(work, Verify):
                outcomes[index] = self.replaced.get(work.session[1], outcomes[index])
        return outcomes[: len(outcomes) - self.dropped]


class FullTarget(FakeTargetEngine):
    """A target that has no room for a forward while `full`."""

    full = False

    def run(self, batch: Sequence[TargetWork]) -> list[TargetOutcome]:
        """Refuses every item while full."""
        if self.full:
            return [ResourceExhaustedError("no memory", retry_after_ms=250) for _ in batch]
        return super().run(batch)


class _Unreadable:
    """Features that cannot be copied off their device."""

    def detach(self) -> Any:
        """Fails as a lost device does."""
        raise RuntimeError("device lost at 0x1234")


async def prefilled(stream: Stream, session_id: str = "s") -> Commands:
    """Opens and prefills a session."""
    commands = Commands(stream, session_id)
    _, result = await stream.ask(commands.open_target(), commands.prefill(PROMPT))
    assert result.root == ROOT
    return commands


async def one_forward(served: Served, stream: Stream, names: list[str]) -> dict[str, Any]:
    """Verifies for all sessions in a single forward; returns outcomes by session id."""
    sessions = [await prefilled(stream, name) for name in ("blocker", *names)]
    behaviour = served.engine.behaviour
    behaviour.batches.clear()
    behaviour.gate.clear()
    await stream.send(sessions[0].verify(COMMITTED))
    await until(lambda: behaviour.batches)
    await stream.send(*(one.verify(COMMITTED) for one in sessions[1:]))
    await until(lambda: served.worker.info.num_queued_rows == len(sessions))
    behaviour.gate.set()
    replies = sorted(await stream.replies(len(sessions)), key=lambda one: one.command_id)
    return {name: one.outcome for name, one in zip(names, replies[1:], strict=True)}


# --- engines --------------------------------------------------------------------------------------
async def test_an_answer_without_encoding_fails_alone() -> None:
    """A bonus no message can hold is INTERNAL for its own session; the batch goes on."""
    engine = FaultyTarget()
    engine.replaced["odd"] = VerifyResult((), 1 << 40, None)
    async with served_target(engine) as served:
        stream = await served.stream()
        outcomes = await one_forward(served, stream, ["a", "odd", "c"])

        assert [outcomes["a"].bonus, outcomes["c"].bonus] == [BONUS, BONUS]
        assert outcomes["odd"].reason == "INTERNAL"
        assert set(outcomes["odd"].metadata) == {"incident"}
        await until(lambda: served.worker.info.num_queued_rows == 0)


async def test_features_that_cannot_be_read_fail_their_session_alone() -> None:
    """The others of the batch were committed and must not run a second time."""
    engine = FaultyTarget()
    engine.replaced["bad"] = VerifyResult((), 1, _Unreadable())  # type: ignore[arg-type]
    async with served_target(engine) as served:
        stream = await served.stream()
        outcomes = await one_forward(served, stream, ["a", "bad", "c"])
        following = (
            await stream.ask(Commands(stream, "a").verify([*COMMITTED, BONUS], round_index=1))
        )[0]

        assert isinstance(outcomes["bad"], SessionFailedError)
        assert "0x1234" not in outcomes["bad"].message
        assert [outcomes["a"].bonus, outcomes["c"].bonus] == [BONUS, BONUS]
        assert following.bonus == continuation(PROMPT, 3)[2]
        assert engine.behaviour.batches == [["blocker"], ["a", "bad", "c"], ["a"]]


async def test_a_lone_command_that_raises_is_not_run_twice() -> None:
    """Its session is given up at once, in the engine too."""
    async with served_target() as served:
        stream = await served.stream()
        commands = await prefilled(stream)
        served.engine.behaviour.poison.add("s")
        served.engine.behaviour.batches.clear()
        failed = (await stream.ask(commands.verify(COMMITTED)))[0]
        again = (await stream.ask(commands.verify(COMMITTED)))[0]

        assert isinstance(failed, SessionFailedError)
        assert isinstance(again, UnknownSessionError)
        assert served.engine.behaviour.batches == [["s"]]
        assert served.engine.kv_reserved_tokens == 0


async def test_a_session_that_the_engine_gives_up_is_given_up_by_the_worker() -> None:
    """Its answer is the engine's; engine and worker keep nothing of it, though none releases it."""
    engine = FaultyTarget()
    engine.replaced["bad"] = SessionFailedError("its logits are not finite")
    async with served_target(engine) as served:
        stream = await served.stream()
        outcomes = await one_forward(served, stream, ["a", "bad", "c"])
        bad = Commands(stream, "bad")
        again = (await stream.ask(bad.verify([*COMMITTED, BONUS], round_index=1)))[0]

        assert outcomes["bad"].message == "its logits are not finite"
        assert isinstance(again, UnknownSessionError)
        assert [outcomes["a"].bonus, outcomes["c"].bonus] == [BONUS, BONUS]
        assert served.worker.info.num_sessions == 3  # The blocker's too.
        assert len(engine._sessions) == 3


async def test_an_engine_that_loses_an_outcome_fails_that_command() -> None:
    """Fewer outcomes than commands are never dealt out to the wrong sessions."""
    engine = FaultyTarget()
    async with served_target(engine) as served:
        stream = await served.stream()
        commands = await prefilled(stream)
        engine.dropped = 1
        failed = (await stream.ask(commands.verify(COMMITTED)))[0]

        assert isinstance(failed, SessionFailedError)


async def test_a_command_refused_for_want_of_room_may_be_tried_again() -> None:
    """The same stamp runs once there is room: nothing had changed."""
    engine = FullTarget()
    async with served_target(engine) as served:
        stream = await served.stream()
        commands = await prefilled(stream)
        engine.full = True
        refused = (await stream.ask(commands.verify(COMMITTED)))[0]
        engine.full = False
        verified = (await stream.ask(commands.verify(COMMITTED)))[0]
        repeated = (await stream.ask(commands.verify(COMMITTED)))[0]

        assert isinstance(refused, ResourceExhaustedError)
        assert verified.bonus == BONUS
        assert repeated == verified


# --- streams --------------------------------------------------------------------------------------
async def test_lost_streams_leave_no_task() -> None:
    """Cancelled with commands in flight, readers and writers end; others go on."""
    async with served_target() as served:
        kept = await served.stream("kept")
        # An answered command shows that the worker's own tasks for this stream are there.
        await prefilled(kept, "before")
        before = len(asyncio.all_tasks())
        streams = [await served.stream(name) for name in "ab"]
        sessions = [await prefilled(stream) for stream in streams]
        served.engine.behaviour.gate.clear()
        for stream, session in zip(streams, sessions, strict=True):
            await stream.send(session.verify(COMMITTED))
        await until(lambda: served.worker.info.num_queued_rows == 2)
        for stream in streams:
            await stream.lose()
        served.engine.behaviour.gate.set()

        await until(lambda: len(asyncio.all_tasks()) <= before)
        await prefilled(kept)


class _Unsending:
    """A handler's context that cannot send results."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, frame: Any) -> None:
        """Sends anything but results."""
        if frame.HasField("results"):
            raise RuntimeError("a result that cannot be sent")
        await self._context.write(frame)


async def test_a_stream_whose_results_cannot_be_sent_ends() -> None:
    """Its controller is told UNAVAILABLE instead of waiting for answers that never come."""

    class Unsendable(TargetServicer):
        """Serves as always, but frames of results break on their way out."""

        async def Connect(  # type: ignore[override]  # noqa: N802 - protobuf's name
            self, request_iterator: Any, context: Any
        ) -> None:
            """Serves one stream."""
            unsending: Any = _Unsending(context)
            await super().Connect(request_iterator, unsending)

    worker = target_worker(FakeTargetEngine(), limits=_LIMITS)
    server = RpcServer([TARGET])
    servicer = Unsendable(worker)
    target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server.grpc_server)
    worker.start()
    address = await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(address, options=channel_options(1 << 20)) as channel:
        stream = Stream(target_pb2_grpc.TargetServiceStub(channel).Connect(), target_wire)
        await stream.attach(Attach("c", StreamLane.ROUND))
        await stream.send(Commands(stream).release_target())

        assert isinstance(await stream.end(), UnavailableError)
    await server.stop(0.0)
    await worker.stop()


async def test_a_half_closed_stream_gets_what_is_ready() -> None:
    """Answers that were ready when the controller said goodbye still arrive."""
    async with served_target() as served:
        stream = await served.stream()
        await stream.send(Commands(stream, "nobody").release_target())
        await stream.call.done_writing()

        assert isinstance((await stream.replies(1))[0].outcome, Released)


async def test_a_stopped_worker_takes_no_stream_and_starts_no_grace() -> None:
    """UNAVAILABLE, and no timer is left that would outlive the worker."""
    async with served_target() as served:
        stream = await served.stream()
        await served.worker.stop()
        await stream.end()
        with pytest.raises(UnavailableError):
            await served.stream("late")

        assert all(one.grace is None for one in served.worker._controllers.values())


async def test_a_finished_writer_sends_everything_and_ends() -> None:
    """Results queued before the end go out in order, in frames of bounded size."""
    frames: list[list[Any]] = []

    async def write(frame: list[Any]) -> None:
        frames.append(frame)

    stream = ResultStream(
        Attach("c", StreamLane.ROUND),
        encode=lambda *parts: [],
        make_frame=list,
        write=write,
        max_frame_bytes=25,
        max_outbox_bytes=1000,
    )
    results: list[Any] = [pb.TargetResult(command_id=one, queue_ms=1.0) for one in range(1, 6)]
    writing = asyncio.create_task(stream.run_writer())
    await asyncio.sleep(0)
    stream.send(results)
    stream.finish()
    await writing

    assert [one for frame in frames for one in frame] == results
    assert max(sum(one.ByteSize() for one in frame) for frame in frames) <= 25


# --- start ----------------------------------------------------------------------------------------
class _FakeRole:
    """A target role whose model loads when told so."""

    name = "target"
    service_name = TARGET

    def __init__(self) -> None:
        self.loading = threading.Event()
        self.may_load = threading.Event()
        self.error: Exception | None = None
        self.warm = 0

    def settings(self, config: ArboristConfig) -> Any:
        """Returns the section `target`."""
        return config.target

    def load(self, config: ArboristConfig) -> WarmEngine:
        """Waits, then gives a fake engine, or fails."""
        self.loading.set()
        self.may_load.wait(10.0)
        if self.error is not None:
            raise self.error
        return _warm_engine(self)

    def rehearse(self, engine: Any, rows: int, clock: BusyClock) -> float | None:
        """Has room for sixteen rows."""
        return 1.0 + rows / 16 if rows <= 16 else None

    def shell(self, engine: Any, **parts: Any) -> Any:
        """Returns the shell around the engine."""
        return target_worker(engine, **parts)

    def add_servicer(self, engine: Any, worker: Any, server: RpcServer) -> None:
        """Adds TargetService."""
        servicer = TargetServicer(worker, lambda: server.set_serving(False))
        target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server.grpc_server)


def _warm_engine(role: _FakeRole) -> WarmEngine:
    class WarmTarget(FakeTargetEngine):
        def warm_up(self) -> None:
            role.warm += 1

    return WarmTarget()


async def _health(channel: grpc.aio.Channel) -> str:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=TARGET))
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_worker_is_unavailable_while_it_loads_and_serves_once_warm() -> None:
    """NOT_SERVING and UNAVAILABLE until weights are loaded and warmed up; then a round works."""
    role, port = _FakeRole(), _free_port()
    config = parse_config({"test": {"target": {"port": port, "metrics_port": -1}}})
    starting = asyncio.create_task(start_worker(role, config))
    await asyncio.to_thread(role.loading.wait, 10.0)
    address = f"127.0.0.1:{port}"
    async with grpc.aio.insecure_channel(address, options=channel_options(1 << 20)) as channel:
        stub = target_pb2_grpc.TargetServiceStub(channel)
        assert await _health(channel) == "NOT_SERVING"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetInfo(pb.TargetServiceGetInfoRequest())
        early = await Stream(stub.Connect(), target_wire).end()
        role.may_load.set()
        running: RunningWorker = await starting
        try:
            assert error_from_call(refused.value).message == "the model is still loading"
            assert isinstance(early, UnavailableError)
            assert role.warm == 1
            assert [one.rows for one in running.info.row_costs] == [1.0, 8.0, 16.0]
            assert await _health(channel) == "SERVING"
            stream = Stream(stub.Connect(), target_wire)
            await stream.attach(Attach("c", StreamLane.ROUND))
            verified = (await stream.ask((await prefilled(stream)).verify(COMMITTED)))[0]
            assert verified.bonus == BONUS
        finally:
            await running.stop(0.0)
        assert not running.healthy
        assert isinstance(await stream.end(), UnavailableError)


async def test_a_model_that_does_not_load_leaves_nothing_behind() -> None:
    """The error comes through and the port is free again."""
    role, port = _FakeRole(), _free_port()
    role.error = UnavailableError("no such model")
    role.may_load.set()
    config = parse_config({"test": {"target": {"port": port, "metrics_port": -1}}})
    for _ in range(2):
        with pytest.raises(UnavailableError, match="no such model"):
            await start_worker(role, config)


async def test_a_stop_waits_for_open_sessions_no_longer_than_its_grace() -> None:
    """With a session open, draining ends when it is released."""
    role = _FakeRole()
    role.may_load.set()
    config = parse_config({"test": {"target": {"port": 0, "metrics_port": -1}}})
    running = await start_worker(role, config)
    async with grpc.aio.insecure_channel(running.address) as channel:
        stream = Stream(target_pb2_grpc.TargetServiceStub(channel).Connect(), target_wire)
        await stream.attach(Attach("c", StreamLane.ROUND))
        session = await prefilled(stream)
        stopping = asyncio.create_task(running.stop(30.0))
        await until(lambda: running.info.draining)
        verified, refused = await stream.ask(
            session.verify(COMMITTED), Commands(stream, "new").open_target()
        )
        await stream.send(session.release_target())
        await stopping

        assert verified.bonus == BONUS
        assert isinstance(refused, UnavailableError)
