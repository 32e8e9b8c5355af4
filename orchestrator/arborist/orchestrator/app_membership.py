"""Keeps one process of a Ray deployment in the directory for as long as it lives."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import ray

from arborist.common.config import RayConfig
from arborist.core.errors import ArboristError, UnavailableError
from arborist.orchestrator.app_directory import RayDirectory
from arborist.orchestrator.worker_registry import RegistryEntry, Role

_log = logging.getLogger(__name__)
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound


class Membership:
    """Enters a process into the directory and renews the entry until it leaves."""

    def __init__(self, config: RayConfig, directory: RayDirectory) -> None:
        """Prepares; `join` begins."""
        self._period_s = config.renew_period_s
        self._directory = directory
        self._entry: RegistryEntry | None = None
        self._task: asyncio.Task[None] | None = None

    def join(self, entry: RegistryEntry) -> None:
        """Begins to renew an entry; a directory that is away is tried again."""
        self._entry = entry
        self._task = asyncio.get_running_loop().create_task(self._renew(entry), name="membership")

    async def leave(self) -> None:
        """Takes the entry out, so that nobody new comes here."""
        if self._task is None or self._entry is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(UnavailableError):  # Its lease ends by itself.
            await self._directory.remove(self._entry.role, self._entry.address)
        self._task = None

    @asynccontextmanager
    async def reporting(self, role: Role) -> AsyncIterator[None]:
        """Tells whoever waits for the deployment why a process did not start.

        Args:
            role: What does not start when the body raises; the error is raised on.
        """
        try:
            yield
        except Exception as error:
            message = (
                error.message
                if isinstance(error, ArboristError)
                else f"internal error ({type(error).__name__}: {' '.join(str(error).split())})"
            )
            with contextlib.suppress(UnavailableError):
                await self._directory.report_failure(role, message)
            raise

    async def _renew(self, entry: RegistryEntry) -> None:
        away = False
        while True:
            try:
                await self._directory.renew(entry)
                away = False
            except UnavailableError as error:
                if not away:
                    _log.warning("%s; the entry is renewed when it is back", error.message)
                away = True
            await asyncio.sleep(self._period_s)


def reachable_address(bound: str, advertise_host: str | None = None) -> str:
    """Returns the address other processes reach a bound port at.

    Args:
        bound: host:port as it was bound; the host may be a wildcard.
        advertise_host: Host to use instead; None = the bound one, or this node's for a wildcard.
    """
    host, _, port = bound.rpartition(":")
    if advertise_host is not None:
        host = advertise_host
    elif host.strip("[]") in _WILDCARDS:
        host = ray.util.get_node_ip_address()
    return f"{host}:{port}"
