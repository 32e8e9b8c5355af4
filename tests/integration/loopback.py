"""Real workers and a real controller in one process, joined by gRPC over the loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry

from arborist.common.config import ArboristConfig, parse_config
from arborist.common.server import RpcServer
from arborist.common.serving_metrics import ServingMetrics
from arborist.common.span_sink import SpanSink
from arborist.common.telemetry import SpanRecorder
from arborist.common.worker import Worker
from arborist.common.worker_limits import WorkerLimits
from arborist.core.engine import DraftEngine, TargetEngine
from arborist.draft.engine import load_draft
from arborist.draft.servicer import DraftServicer, draft_worker
from arborist.orchestrator.controller import Controller
from arborist.orchestrator.directory import WorkerAddresses
from arborist.orchestrator.generation import (
    DeliveredRound,
    Generation,
    GenerationRequest,
    Started,
    Summary,
)
from arborist.orchestrator.worker_connection import ConnectionSettings
from arborist.target.engine import load_target
from arborist.target.servicer import TargetServicer, target_worker
from arborist.v1 import draft_pb2_grpc, target_pb2_grpc

PAIR = Path(__file__).resolve().parents[1] / "golden" / "eagle2"
LIMITS = WorkerLimits(reattach_grace_s=0.5)
SETTINGS = ConnectionSettings(backoff_first_s=0.02, backoff_max_s=0.2, refresh_s=0.2)


def golden_target(path: Path = PAIR / "target", kv_capacity_tokens: int = 8192) -> TargetEngine:
    """The golden pair's target in fp32."""
    return load_target(
        path, device="cpu", dtype="float32", kv_capacity_tokens=kv_capacity_tokens, name="golden"
    )


def golden_draft(target: Path = PAIR / "target") -> DraftEngine:
    """The golden pair's head in fp32."""
    return load_draft(
        PAIR / "eagle_head", target, device="cpu", dtype="float32", kv_capacity_tokens=8192
    )


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Waits for something that other tasks do; fails if it does not come."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - looks at what other tasks do
            await asyncio.sleep(0.005)


@dataclass
class ServedWorker:
    """A worker that listens; `stop` is as sudden as a process's end."""

    worker: Worker
    server: RpcServer
    address: str

    async def stop(self) -> None:
        """Ends streams and server at once."""
        await self.server.grpc_server.stop(None)
        await self.worker.stop()


async def serve_target(
    engine: TargetEngine, spans: SpanSink | None = None, port: int = 0
) -> ServedWorker:
    """Serves a target."""
    worker = target_worker(engine, limits=LIMITS, spans=spans)
    server = RpcServer(["arborist.v1.TargetService"])
    target_pb2_grpc.add_TargetServiceServicer_to_server(TargetServicer(worker), server.grpc_server)
    worker.start()
    return ServedWorker(worker, server, await server.start("127.0.0.1", port))


async def serve_draft(
    engine: DraftEngine, spans: SpanSink | None = None, port: int = 0
) -> ServedWorker:
    """Serves a draft."""
    worker = draft_worker(engine, limits=LIMITS, spans=spans)
    server = RpcServer(["arborist.v1.DraftService"])
    servicer = DraftServicer(worker, engine.feature_spec, engine.feature_width)
    draft_pb2_grpc.add_DraftServiceServicer_to_server(servicer, server.grpc_server)
    worker.start()
    return ServedWorker(worker, server, await server.start("127.0.0.1", port))


@dataclass
class TestDirectory:
    """Workers the controller is told of; may change."""

    __test__ = False

    targets: list[str] = field(default_factory=list)
    drafts: list[str] = field(default_factory=list)

    async def snapshot(self) -> WorkerAddresses:
        """Returns them."""
        return WorkerAddresses(tuple(self.targets), tuple(self.drafts))


@dataclass
class Deployment:
    """A controller and its workers."""

    controller: Controller
    targets: list[ServedWorker]
    drafts: list[ServedWorker]
    directory: TestDirectory
    registry: CollectorRegistry

    async def wait_idle(self) -> None:
        """Waits until no worker keeps anything of any session; fails if one does."""
        await until(
            lambda: (
                not any(
                    one.worker.info.num_sessions or one.worker.info.kv_reserved_tokens
                    for one in (*self.targets, *self.drafts)
                )
            )
        )


def patient(config: ArboristConfig) -> ArboristConfig:
    """Gives workers time that a busy test machine may need; losses are shown by other means.

    Trees have one size unless a test says otherwise: what pays here is no matter of behaviour.
    """
    floors = {"draft_deadline_floor_ms": 30_000, "target_deadline_floor_ms": 30_000}
    controller = config.controller.model_copy(update=floors)
    speculation = config.speculation
    if "adaptive" not in speculation.model_fields_set:
        speculation = speculation.model_copy(update={"adaptive": False})
    return config.model_copy(update={"controller": controller, "speculation": speculation})


@asynccontextmanager
async def deployment(
    *,
    targets: Iterable[TargetEngine],
    drafts: Iterable[DraftEngine],
    config: ArboristConfig | None = None,
    recorder: SpanRecorder | None = None,
    target_spans: SpanSink | None = None,
    draft_spans: SpanSink | None = None,
    check_fit: bool = True,
) -> AsyncIterator[Deployment]:
    """Starts everything, and stops it."""
    async with AsyncExitStack() as stack:
        target_workers = [await serve_target(one, target_spans) for one in targets]
        draft_workers = [await serve_draft(one, draft_spans) for one in drafts]
        for one in (*target_workers, *draft_workers):
            stack.push_async_callback(one.stop)
        directory = TestDirectory(
            [one.address for one in target_workers], [one.address for one in draft_workers]
        )
        registry = CollectorRegistry()
        controller = Controller(
            patient(config or parse_config({})),
            directory,
            metrics=ServingMetrics(registry),
            recorder=recorder or SpanRecorder(),
            connection=SETTINGS,
            target_wait_s=5.0,
        )
        await controller.start()
        stack.push_async_callback(controller.stop, 0.0)
        if check_fit:
            await controller.wait_ready(20.0, want_draft=bool(draft_workers))
        yield Deployment(controller, target_workers, draft_workers, directory, registry)


@dataclass
class Completion:
    """Everything a generation yielded."""

    started: Started
    rounds: list[DeliveredRound]
    summary: Summary

    @property
    def tokens(self) -> list[int]:
        """All tokens delivered."""
        return [token for one in self.rounds for token in one.token_ids]


async def collect(generation: Generation) -> Completion:
    """Reads a generation to its end."""
    try:
        events = [event async for event in generation]
    finally:
        await generation.aclose()
    started, *rounds, summary = events
    assert isinstance(started, Started)
    assert isinstance(summary, Summary)
    delivered = [one for one in rounds if isinstance(one, DeliveredRound)]
    assert len(delivered) == len(rounds)
    return Completion(started, delivered, summary)


async def complete(deployment: Deployment, request: GenerationRequest) -> Completion:
    """Runs a request to its end."""
    return await collect(deployment.controller.generate(request))
