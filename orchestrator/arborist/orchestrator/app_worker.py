"""A draft or target worker as a Ray Serve replica: the same worker as the bare process, placed.

Serve calls nothing here but the health check. Controllers reach the worker's own gRPC port, which
they learn from the directory.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from arborist.common.config import ArboristConfig
from arborist.common.logging_setup import configure_logging
from arborist.core.errors import UnavailableError
from arborist.orchestrator.app_directory import RayDirectory
from arborist.orchestrator.app_membership import Membership, reachable_address
from arborist.orchestrator.worker_registry import RegistryEntry, Role

if TYPE_CHECKING:
    # Not at run time: it brings torch, and whoever deploys imports this module too.
    from arborist.common.worker_info import WorkerInfo


class RunningWorker(Protocol):
    """A worker that serves; what `arborist.draft` and `arborist.target` start."""

    @property
    def address(self) -> str:
        """Returns the address bound, host:port."""
        ...

    @property
    def metrics_port(self) -> int:
        """Returns the Prometheus port; −1 = off."""
        ...

    @property
    def info(self) -> WorkerInfo:
        """Returns what it holds."""
        ...

    @property
    def healthy(self) -> bool:
        """Returns whether it can still compute."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Drains for at most `grace_s`, then frees everything."""
        ...


class WorkerReplica:
    """One worker."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, role: Role, config: ArboristConfig
    ) -> None:
        """Loads the model and serves.

        Args:
            role: ``draft`` or ``target``.
            config: Everything that can be set, paths absolute.

        Raises:
            ArboristError: The model cannot be served or a port is in use.
        """
        # Serve replaces sys.stderr; Ray's driver prints what comes through the real one.
        configure_logging(config.telemetry, role, sys.__stderr__)
        self._worker: RunningWorker | None = None
        self._grace_s = config.controller.stop_grace_s
        directory = RayDirectory(config.ray.namespace, config.ray.lease_s)
        self._membership = Membership(config.ray, directory)
        # By name: the orchestrator knows workers by their contract only.
        module: Any = import_module(f"arborist.{role}.__main__")
        async with self._membership.reporting(role):
            worker = cast("RunningWorker", await module.start_worker(_placed(config, role)))
        self._worker = worker
        settings = config.target if role == "target" else config.draft
        info = worker.info
        self._membership.join(
            RegistryEntry(
                role,
                reachable_address(worker.address, settings.advertise_host),
                model=info.model.name,
                digest=info.model.digest,
                kv_capacity_tokens=info.kv_capacity_tokens,
                context_length=info.model.context_length,
                metrics_port=worker.metrics_port,
            )
        )

    async def check_health(self) -> None:
        """Fails when the worker can no longer compute; Serve then replaces it."""
        if self._worker is None or not self._worker.healthy:
            raise UnavailableError("the compute thread has ended")

    async def __del__(self) -> None:
        """Drains; called by Serve before it ends the process."""
        await self._membership.leave()
        if self._worker is not None:  # None when the constructor failed.
            await self._worker.stop(self._grace_s)


def _placed(config: ArboristConfig, role: Role) -> ArboristConfig:
    """Returns the configuration inside a replica, which sees only the GPU that Ray gave it."""
    worker = config.target if role == "target" else config.draft
    if worker.device == "cpu":
        return config
    return config.model_copy(update={role: worker.model_copy(update={"device": "cuda:0"})})
