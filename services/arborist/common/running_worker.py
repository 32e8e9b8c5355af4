"""A worker that serves: engine, shell, gRPC server, metrics and traces, started and stopped as one.

The draft's and the target's `__main__` say what is loaded; everything else is alike.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version
from typing import Any, Protocol, TypeAlias

import uvloop

from arborist.common.busy_clock import BusyClock, busy_clock
from arborist.common.config import ArboristConfig, WorkerConfig
from arborist.common.cost_rehearsal import (
    FULL_REHEARSAL_S,
    SHORT_REHEARSAL_S,
    CostRehearsal,
    finish_rehearsal,
)
from arborist.common.ended_thread import in_ended_thread
from arborist.common.event_loop_metrics import watch_event_loop
from arborist.common.loading_gate import LoadingGate
from arborist.common.logging_setup import configure_logging
from arborist.common.metrics_server import MetricsServer, metrics_url, new_registry
from arborist.common.server import RpcServer, wait_for_signal
from arborist.common.span_sink import SpanSink
from arborist.common.startup_objects import freeze_startup_objects
from arborist.common.telemetry import WorkerSpanSink, build_span_recorder
from arborist.common.worker import Worker
from arborist.common.worker_info import WorkerInfo
from arborist.common.worker_limits import WorkerLimits
from arborist.common.worker_metrics import WorkerMetrics
from arborist.common.worker_prometheus import PrometheusWorkerMetrics

_EXPORT_S = 2.0


class WarmEngine(Protocol):
    """What every engine can do besides its contract."""

    @property
    def kv_capacity_tokens(self) -> int:
        """Returns all KV positions."""
        ...

    def warm_up(self) -> None:
        """Runs once, so that no client pays for first calls."""
        ...


class WorkerRole(Protocol):
    """What tells a draft worker from a target worker."""

    @property
    def name(self) -> str:
        """Returns "draft" or "target"."""
        ...

    @property
    def service_name(self) -> str:
        """Returns the full name of its gRPC service."""
        ...

    def settings(self, config: ArboristConfig) -> WorkerConfig:
        """Returns its section, with port and metrics_port."""
        ...

    def load(self, config: ArboristConfig) -> WarmEngine:
        """Loads the model; blocks."""
        ...

    def rehearse(self, engine: Any, rows: int, clock: BusyClock) -> float | None:
        """Runs a forward of so many rows; returns its milliseconds, None when they do not fit."""
        ...

    def shell(
        self,
        engine: Any,
        *,
        limits: WorkerLimits,
        device: str,
        version: str,
        spans: SpanSink,
        metrics: WorkerMetrics,
    ) -> AnyWorker:
        """Returns the shell around the engine."""
        ...

    def add_servicer(self, engine: Any, worker: AnyWorker, server: RpcServer) -> None:
        """Adds the service to a server; a Drain also ends its health."""
        ...


AnyWorker: TypeAlias = Worker[Any, Any]


class RunningWorker:
    """A worker that serves until `stop`."""

    def __init__(
        self,
        worker: AnyWorker,
        server: RpcServer,
        address: str,
        metrics_host: str,
        metrics_port: int,
    ) -> None:
        self._worker = worker
        self._server = server
        self._resources = AsyncExitStack()
        self.address = address
        self.metrics_port = metrics_port
        self.metrics_url = metrics_url(metrics_host, metrics_port)

    @property
    def info(self) -> WorkerInfo:
        """Returns what it holds and how full it is."""
        return self._worker.info

    @property
    def healthy(self) -> bool:
        """Returns whether it can still compute."""
        return self._worker.computing

    async def stop(self, grace_s: float) -> None:
        """Refuses new sessions, waits for running ones, then frees everything.

        Args:
            grace_s: Longest wait for running sessions, in seconds.
        """
        self._worker.drain()
        await self._server.set_serving(False)
        try:
            async with asyncio.timeout(grace_s):
                await self._worker.wait_empty()
        except TimeoutError:
            pass
        await self._resources.aclose()


async def start_worker(role: WorkerRole, config: ArboristConfig) -> RunningWorker:
    """Loads, warms up and serves inside the running loop.

    Args:
        role: Draft or target.
        config: Everything that can be set.
    Returns:
        The worker, SERVING.
    Raises:
        ArboristError: The model cannot be served or a port is in use; nothing is left behind.
    """
    settings: Any = role.settings(config)
    async with AsyncExitStack() as stack:
        software = version("arborist")
        registry = new_registry()
        metrics = PrometheusWorkerMetrics(registry, role.name)
        watch_event_loop(registry)
        metrics_server = MetricsServer(registry, settings.host, settings.metrics_port)
        stack.callback(metrics_server.close)
        recorder = build_span_recorder(config.telemetry, role.name, software)
        stack.push_async_callback(asyncio.to_thread, recorder.shutdown, _EXPORT_S)
        metrics.watch_dropped_spans(lambda: float(recorder.num_dropped))
        server = RpcServer([role.service_name], setting=f"{role.name}.port")
        gate = LoadingGate(role.service_name)
        server.grpc_server.add_generic_rpc_handlers((gate,))
        address = await server.start(settings.host, settings.port)
        stack.push_async_callback(server.stop, 0.2)

        # While weights load, health says NOT_SERVING and the service UNAVAILABLE.
        load = partial(_load, role, config, settings.num_threads)
        engine = await in_ended_thread(load, "load")
        metrics.set_kv_capacity_tokens(engine.kv_capacity_tokens)
        worker = role.shell(
            engine,
            limits=_limits(settings),
            device=settings.device,
            version=software,
            spans=WorkerSpanSink(recorder),
            metrics=metrics,
        )
        worker.start()
        stack.push_async_callback(worker.stop)
        await worker.call(engine.warm_up)
        clock = busy_clock(settings.device)
        rehearsal = CostRehearsal(partial(role.rehearse, engine, clock=clock), worker.costs)
        follows_load = config.speculation.adaptive
        budget_s = FULL_REHEARSAL_S if follows_load else SHORT_REHEARSAL_S
        await worker.call(partial(rehearsal.run, budget_s))
        role.add_servicer(engine, worker, server)
        gate.open()
        freeze_startup_objects()
        await server.set_serving(True)
        rest = asyncio.create_task(finish_rehearsal(rehearsal, worker), name="rehearsal")
        stack.push_async_callback(_end, rest)
        running = RunningWorker(worker, server, address, settings.host, metrics_server.port)
        running._resources = stack.pop_all()
        return running


def run_worker(role: WorkerRole, config: ArboristConfig) -> None:
    """Serves as a process of its own until SIGTERM or Ctrl-C.

    Raises:
        ArboristError: The model cannot be served or a port is in use.
    """
    configure_logging(config.telemetry, role.name)
    uvloop.run(_serve(role, config))


async def _serve(role: WorkerRole, config: ArboristConfig) -> None:
    worker = await start_worker(role, config)
    sys.stdout.write(ready_line(role.name, worker) + "\n")
    sys.stdout.flush()
    await wait_for_signal()
    await worker.stop(config.controller.stop_grace_s)


def ready_line(role: str, worker: RunningWorker) -> str:
    """Returns the line that says where the worker is and what fits into it."""
    info = worker.info
    length = info.model.context_length
    metrics = f" metrics={worker.metrics_url}" if worker.metrics_url else ""
    return (
        f"ready: {role} grpc://{worker.address} model={info.model.name} device={info.device} "
        f"dtype={info.model.dtype} kv={info.kv_capacity_tokens} tokens, fits "
        f"{info.kv_capacity_tokens // length if length else 0} sessions of {length} tokens{metrics}"
    )


def _load(role: WorkerRole, config: ArboristConfig, num_threads: int) -> WarmEngine:
    import torch  # Late: thread variables are set before.

    if num_threads:
        torch.set_num_threads(num_threads)
    return role.load(config)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _limits(settings: WorkerConfig) -> WorkerLimits:
    return WorkerLimits(
        max_rows=settings.max_rows,
        gather_share=settings.gather_share,
        max_sessions=settings.max_sessions,
        reattach_grace_s=settings.reattach_grace_s,
    )
