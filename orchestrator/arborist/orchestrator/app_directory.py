"""The worker directory of a Ray cluster: a `WorkerRegistry` inside one detached actor."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.exceptions import RayError

from arborist.core.errors import UnavailableError
from arborist.orchestrator.directory import WorkerAddresses
from arborist.orchestrator.worker_registry import (
    RegistryEntry,
    RegistrySnapshot,
    Role,
    WorkerRegistry,
)

ACTOR_NAME = "arborist-directory"
_CALL_TIMEOUT_S = 5.0


class RayDirectory:
    """Reads and writes the directory from any process of the cluster; never inside a round.

    The actor is made by whoever asks first, and made again by whoever finds it dead. It starts
    empty then; until it is older than a lease, what was known before still counts.
    """

    def __init__(self, namespace: str, lease_s: float) -> None:
        """Prepares; nothing is asked yet.

        Args:
            namespace: Ray namespace of the actor.
            lease_s: Seconds that an entry lives without being renewed.
        """
        self._namespace = namespace
        self._lease_s = lease_s
        self._known: dict[tuple[Role, str], RegistryEntry] = {}
        self._actor: Any = None

    async def snapshot(self) -> WorkerAddresses:
        """Returns the workers' addresses; implements `WorkerDirectory`.

        Raises:
            UnavailableError: The actor does not answer.
        """
        entries = (await self.read()).entries
        return WorkerAddresses(
            tuple(one.address for one in entries if one.role == "target"),
            tuple(one.address for one in entries if one.role == "draft"),
        )

    async def read(self) -> RegistrySnapshot:
        """Returns everything the directory knows.

        Raises:
            UnavailableError: The actor does not answer.
        """
        answer = await self._call("snapshot")
        if not isinstance(answer, RegistrySnapshot):
            raise UnavailableError("the worker directory answers nonsense")
        if answer.age_s > self._lease_s:
            self._known.clear()
        self._known.update({(one.role, one.address): one for one in answer.entries})
        return RegistrySnapshot(answer.age_s, tuple(self._known.values()), answer.failures)

    async def renew(self, entry: RegistryEntry) -> None:
        """Enters a process or extends its lease.

        Raises:
            UnavailableError: The actor does not answer; try again a little later.
        """
        await self._call("renew", entry)

    async def remove(self, role: Role, address: str) -> None:
        """Forgets a process that stops.

        Raises:
            UnavailableError: The actor does not answer; the lease will end by itself.
        """
        await self._call("remove", role, address)

    async def report_failure(self, role: Role, message: str) -> None:
        """Keeps why a process did not start.

        Raises:
            UnavailableError: The actor does not answer.
        """
        await self._call("report_failure", role, message)

    def kill(self) -> None:
        """Ends the actor, when the deployment it belongs to ends."""
        try:
            ray.kill(ray.get_actor(ACTOR_NAME, self._namespace))
        except (ValueError, RayError):
            return

    async def _call(self, method: str, *arguments: object) -> object:
        try:
            async with asyncio.timeout(_CALL_TIMEOUT_S):
                if self._actor is None:
                    self._actor = await asyncio.to_thread(self._find_or_make)
                return await getattr(self._actor, method).remote(*arguments)
        except (RayError, TimeoutError, ValueError) as error:
            # A dead handle stays dead; the next call finds or makes a living actor.
            self._actor = None
            raise UnavailableError(
                f"the worker directory does not answer ({type(error).__name__})"
            ) from None

    def _find_or_make(self) -> Any:
        return (
            ray.remote(WorkerRegistry)
            .options(
                name=ACTOR_NAME,
                namespace=self._namespace,
                lifetime="detached",
                get_if_exists=True,
                max_restarts=-1,
                num_cpus=0,
            )
            .remote(self._lease_s)
        )
