"""A controller as a process has it: public APIs, metrics, traces, health. Knows no Ray."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from arborist.common.config import ArboristConfig
from arborist.common.event_loop_metrics import watch_event_loop
from arborist.common.metrics_server import MetricsServer, metrics_url, new_registry
from arborist.common.server import RpcServer
from arborist.common.serving_metrics import ServingMetrics
from arborist.common.startup_objects import freeze_startup_objects
from arborist.common.telemetry import build_span_recorder
from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.doorkeeper import Doorkeeper
from arborist.orchestrator.api.generation_servicer import GenerationServicer
from arborist.orchestrator.api.http import create_http_app
from arborist.orchestrator.api.key_interceptor import KeyInterceptor
from arborist.orchestrator.api.openai.http_limits import HttpLimits
from arborist.orchestrator.api.tokenizer import load_tokenizer
from arborist.orchestrator.api.validator import RequestLimits
from arborist.orchestrator.controller import Controller
from arborist.orchestrator.directory import WorkerDirectory
from arborist.v1 import generation_pb2, generation_pb2_grpc

SERVICE_NAME = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name
# What a stop may take beyond the grace of running requests: delivering the last spans.
_SPAN_FLUSH_S = 1.0


class ControllerServer:
    """Everything one controller process owns, started and stopped in order."""

    def __init__(
        self,
        config: ArboristConfig,
        directory: WorkerDirectory,
        *,
        registry: CollectorRegistry | None = None,
    ) -> None:
        """Prepares; `start` binds. Needs a running event loop.

        Args:
            config: Everything that can be set.
            directory: Where workers are.
            registry: Metrics of the process; None = a new one.

        Raises:
            ConfigError: The trace file or an OTEL_… variable cannot be used.
            InvalidArgumentError: The file of API keys cannot be used.
        """
        self._config = config
        self._registry = registry or new_registry()
        metrics = ServingMetrics(self._registry)
        self._doorkeeper = Doorkeeper.from_config(config.controller, metrics.count_refused_key)
        self._recorder = build_span_recorder(config.telemetry, "controller", version("arborist"))
        self._rpc = RpcServer(
            [SERVICE_NAME],
            max_message_bytes=config.controller.max_request_bytes,
            interceptors=[KeyInterceptor(self._doorkeeper)] if self._doorkeeper.asks else (),
            max_metadata_bytes=config.controller.max_metadata_bytes,
            setting="controller.grpc_port",
        )
        self._completions: Completions | None = None
        self._metrics: MetricsServer | None = None
        self._following: list[asyncio.Task[None]] = []
        self.controller = Controller(
            config,
            directory,
            metrics=metrics,
            recorder=self._recorder,
        )
        self.address = ""

    @property
    def metrics_port(self) -> int:
        """Returns the Prometheus port; −1 = off."""
        return self._metrics.port if self._metrics is not None else -1

    @property
    def metrics_url(self) -> str:
        """Returns where the metrics are shown; empty = nowhere."""
        return metrics_url(self._config.controller.grpc_host, self.metrics_port)

    async def start(self) -> None:
        """Binds the ports and begins to connect to workers; not SERVING before one is there.

        Raises:
            ConfigError: The metrics port is in use, or there is no such model folder.
            UnavailableError: The gRPC port is in use.
            MismatchError: The model's tokenizer cannot be loaded.
        """
        settings, target = self._config.controller, self._config.target
        tokenizer = await asyncio.to_thread(
            load_tokenizer, target.resolved_model(), target.revision
        )
        limits = RequestLimits.from_config(settings, self._config.speculation)
        self._completions = Completions(self.controller, tokenizer, limits)
        servicer = GenerationServicer(
            self._completions,
            settings.client_timeout_s,
            self._doorkeeper,
            settings.max_metadata_bytes,
        )
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, self._rpc.grpc_server)
        self._doorkeeper.announce()
        self.address = await self._rpc.start(settings.grpc_host, settings.grpc_port)
        watch_event_loop(self._registry)
        self._metrics = MetricsServer(self._registry, settings.grpc_host, settings.metrics_port)
        await self.controller.start()
        freeze_startup_objects()
        loop = asyncio.get_running_loop()
        self._following = [
            loop.create_task(self._follow_health(), name="controller-health"),
            loop.create_task(self._doorkeeper.follow(), name="controller-keys"),
        ]

    def http_app(self) -> FastAPI:
        """Returns the HTTP API, for whoever carries it; call it after `start`."""
        if self._completions is None:
            raise RuntimeError("the server has not started")
        limits = HttpLimits.from_config(self._config.controller)
        return create_http_app(self._completions, self._registry, limits, self._doorkeeper)

    async def stop(self, grace_s: float) -> None:
        """Drains: refuses new requests, lets running ones finish, frees every port.

        Args:
            grace_s: Seconds that running requests get.
        """
        for one in self._following:
            one.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        # Both at once: a stopped server takes no calls while the controller lets running ones end.
        await asyncio.gather(self.controller.stop(grace_s), self._rpc.stop(grace_s))
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)
        await asyncio.to_thread(self._recorder.shutdown, _SPAN_FLUSH_S)

    async def _follow_health(self) -> None:
        serving = False
        while True:
            if self.controller.ready != serving:
                serving = not serving
                await self._rpc.set_serving(serving)
            await self.controller.workers.changed()
