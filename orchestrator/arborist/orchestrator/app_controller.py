"""The controller as a Ray Serve replica: HTTP through Serve, gRPC on a port of its own."""

from __future__ import annotations

import asyncio
import contextlib
import sys

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from arborist.common.config import ArboristConfig
from arborist.common.logging_setup import configure_logging
from arborist.core.errors import ArboristError
from arborist.orchestrator.app_directory import RayDirectory
from arborist.orchestrator.app_membership import Membership, reachable_address
from arborist.orchestrator.directory import FixedDirectory, WorkerAddresses, WorkerDirectory
from arborist.orchestrator.worker_registry import RegistryEntry


class BothDirectories:
    """Fixed addresses beside the workers that Ray placed."""

    def __init__(self, first: WorkerDirectory, second: WorkerDirectory) -> None:
        self._directories = (first, second)

    async def snapshot(self) -> WorkerAddresses:
        """Returns the workers of both.

        Raises:
            UnavailableError: One of them cannot be asked.
        """
        first, second = [await one.snapshot() for one in self._directories]
        return WorkerAddresses(first.targets + second.targets, first.drafts + second.drafts)


class ControllerReplica:
    """One controller; `ray.serve.ingress` gives it the HTTP side."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: ArboristConfig, *workers: DeploymentHandle
    ) -> None:
        """Starts; the replica is ready when the port is bound, not when a target is there.

        Args:
            config: Everything that can be set.
            workers: The workers' deployments, never called: Serve so stops them after us.

        Raises:
            ArboristError: A port is in use, or the model's tokenizer cannot be loaded.
        """
        # Serve replaces sys.stderr; Ray's driver prints what comes through the real one.
        configure_logging(config.telemetry, "controller", sys.__stderr__)
        self._config = config
        settings = config.controller
        directory = RayDirectory(config.ray.namespace, config.ray.lease_s)
        self._membership = Membership(config.ray, directory)
        fixed = FixedDirectory(settings.target_addresses, settings.draft_addresses)
        # Late: whoever deploys imports this module too, and has no use for what this brings.
        from arborist.orchestrator.controller_server import ControllerServer

        self._server = ControllerServer(config, BothDirectories(fixed, directory))
        self._entering: asyncio.Task[None] | None = None
        async with self._membership.reporting("controller"):
            await self._server.start()
        self._entering = asyncio.get_running_loop().create_task(self._enter_when_ready())

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Returns the HTTP API; called by Serve after the constructor."""
        return self._server.http_app()

    async def __del__(self) -> None:
        """Drains; called by Serve before it ends the process."""
        if self._entering is not None:
            self._entering.cancel()
            await asyncio.gather(self._entering, return_exceptions=True)
        await self._membership.leave()
        await self._server.stop(self._config.controller.stop_grace_s)

    async def _enter_when_ready(self) -> None:
        """Enters the directory once requests find everything that was configured."""
        ray, settings = self._config.ray, self._config.controller
        want_draft = bool(ray.num_drafts or settings.draft_addresses)
        controller = self._server.controller
        with contextlib.suppress(ArboristError):  # Reported: whoever started us waits for it.
            async with self._membership.reporting("controller"):
                await controller.wait_ready(ray.ready_timeout_s, want_draft=want_draft)
        if controller.ready:
            address = reachable_address(self._server.address)
            self._membership.join(
                RegistryEntry("controller", address, metrics_port=self._server.metrics_port)
            )
