"""Every worker the controller knows, and which of them a session gets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from arborist.core.engine import ModelInfo
from arborist.core.errors import (
    ArboristError,
    MismatchError,
    ResourceExhaustedError,
    UnavailableError,
)
from arborist.orchestrator.directory import WorkerDirectory
from arborist.orchestrator.grpc_draft_link import GrpcDraftLink, draft_protocol
from arborist.orchestrator.grpc_target_link import GrpcTargetLink, target_protocol
from arborist.orchestrator.links import DraftLink, TargetLink
from arborist.orchestrator.placement import Placement
from arborist.orchestrator.worker_connection import (
    ConnectionSettings,
    WorkerConnection,
    WorkerProtocol,
)
from arborist.orchestrator.worker_fit import draft_misfit

_log = logging.getLogger(__name__)

# A worker that does not say in this time what it knows is taken to know nothing.
_FIND_TIMEOUT_S = 0.1
# How often a session that moves asks full targets again, and how often in vain while none of our
# sessions is there.
_ROOM_PERIOD_S = 0.1
_MAX_TRIES_ALONE = 50
# What others of ours hold may be out of reach too, so that no wait is without end; in seconds.
_MOST_WAIT_FOR_ROOM_S = 120.0

CommandT = TypeVar("CommandT")
AnswerT = TypeVar("AnswerT")
InfoT = TypeVar("InfoT")
LinkT = TypeVar("LinkT", GrpcTargetLink, GrpcDraftLink)


class GrpcWorkerPool:
    """Connections to all known workers; knows the way when the directory is gone."""

    def __init__(
        self,
        directory: WorkerDirectory,
        controller_id: str,
        *,
        settings: ConnectionSettings | None = None,
        period_s: float = 1.0,
    ) -> None:
        """Prepares; `start` connects.

        Args:
            directory: Where workers are.
            controller_id: Scope of our session ids.
            settings: How workers are reached.
            period_s: Seconds between two looks into the directory.
        """
        self._directory = directory
        self._controller_id = controller_id
        self._settings = settings or ConnectionSettings()
        self._period_s = period_s
        self._targets: dict[str, GrpcTargetLink] = {}
        self._drafts: dict[str, GrpcDraftLink] = {}
        self._listed: set[str] = set()
        self._changed = asyncio.Event()
        self._misfits: dict[tuple[str, str], str] = {}
        self._task: asyncio.Task[None] | None = None
        self._directory_gone = False
        self._num_late = 0  # Of workers that were let go.

    @property
    def num_misfits(self) -> int:
        """Returns pairs of draft and target that were refused."""
        return len(self._misfits)

    @property
    def num_late(self) -> int:
        """Returns results that came after their deadline; never falls."""
        return self._num_late + sum(link.connection.num_late for link in self._links())

    @property
    def targets(self) -> list[GrpcTargetLink]:
        """Returns targets that take sessions now, least loaded first."""
        return _least_loaded(self._targets.values(), self._listed)

    @property
    def present_targets(self) -> list[GrpcTargetLink]:
        """Returns connected targets, also one that has not answered for a moment."""
        return [
            link
            for link in self._targets.values()
            if link.connection.attached
            and not link.connection.refusing
            and link.connection.address in self._listed
        ]

    @property
    def drafts(self) -> list[GrpcDraftLink]:
        """Returns drafts that take sessions now, least loaded first, fitting or not."""
        return _least_loaded(self._drafts.values(), self._listed)

    async def start(self) -> None:
        """Looks into the directory once, then follows it; connecting goes on behind."""
        if self._task is None:
            await self._follow_once()
            self._task = asyncio.get_running_loop().create_task(
                self._follow(), name="worker-directory"
            )

    async def aclose(self) -> None:
        """Disconnects from every worker."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.gather(*(link.connection.aclose() for link in self._links()))
        self._num_late = self.num_late
        self._targets.clear()
        self._drafts.clear()

    async def changed(self) -> None:
        """Returns after the next change of any worker."""
        await self._changed.wait()

    async def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Waits for the workers to make a condition true.

        Args:
            condition: Looked at after every change.
            timeout_s: Longest wait, in seconds.
        Returns:
            Whether it is true now.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    await self.changed()
        except TimeoutError:
            return condition()
        return True

    def fitting_drafts(self, target: ModelInfo) -> list[GrpcDraftLink]:
        """Returns drafts that take sessions now and belong to a target, least loaded first."""
        return [link for link in self.drafts if not self._misfit(target, link)]

    def check_fit(self) -> None:
        """Refuses a deployment whose only drafts belong to other models.

        Raises:
            MismatchError: There are drafts, and none fits any target.
        """
        pairs = [(target.info, draft) for target in self.targets for draft in self.drafts]
        misfits = [self._misfit(target, draft) for target, draft in pairs]
        if misfits and all(misfits):
            raise MismatchError(f"the draft does not fit the target: {misfits[0]}")

    def release(self, session_id: str) -> None:
        """Frees a session wherever it is still open."""
        for link in self._links():
            if session_id in link.sessions:
                link.release(session_id)

    # ---- following the directory -----------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            await self._follow_once()

    async def _follow_once(self) -> None:
        try:
            addresses = await self._directory.snapshot()
        except ArboristError as error:
            if not self._directory_gone:
                _log.warning("worker directory: %s; known workers stay", error.message)
            self._directory_gone = True
            return
        self._directory_gone = False
        self._listed = {*addresses.targets, *addresses.drafts}
        for address in addresses.targets:
            if address not in self._targets:
                self._targets[address] = GrpcTargetLink(self._connect(target_protocol(), address))
        for address in addresses.drafts:
            if address not in self._drafts:
                self._drafts[address] = GrpcDraftLink(self._connect(draft_protocol(), address))
        await self._forget(self._targets)
        await self._forget(self._drafts)

    def _connect(
        self, protocol: WorkerProtocol[CommandT, AnswerT, InfoT], address: str
    ) -> WorkerConnection[CommandT, AnswerT, InfoT]:
        connection = WorkerConnection(
            protocol, address, self._controller_id, self._settings, self._pulse
        )
        connection.start()
        return connection

    async def _forget(self, links: dict[str, LinkT]) -> None:
        """Lets go of workers that left the directory, once none of our sessions is there."""
        for address in [one for one in links if one not in self._listed]:
            link = links[address]
            if not link.sessions or not link.connection.attached:
                await link.connection.aclose()
                self._num_late += link.connection.num_late
                del links[address]

    def _pulse(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _links(self) -> list[GrpcTargetLink | GrpcDraftLink]:
        return [*self._targets.values(), *self._drafts.values()]

    def _misfit(self, target: ModelInfo, link: GrpcDraftLink) -> str:
        draft = link.info
        misfit = draft_misfit(target, draft, link.feature_spec, link.feature_width)
        pair = (target.digest, draft.digest)
        if misfit and pair not in self._misfits:
            _log.error(
                "draft %s at %s is not used with target %s: %s",
                draft.name,
                link.connection.address,
                target.name,
                misfit,
            )
            self._misfits[pair] = misfit
        return misfit


def _least_loaded(links: Iterable[LinkT], listed: set[str]) -> list[LinkT]:
    usable = [
        link for link in links if link.connection.usable and link.connection.address in listed
    ]
    return sorted(usable, key=lambda link: len(link.sessions))


class SessionWorkers:
    """The workers one session may use; implements `links.WorkerPool`.

    A session stays with one model: after a loss it moves only to a target of the same digest,
    because another model would say something else.
    """

    def __init__(
        self,
        pool: GrpcWorkerPool,
        model: str,
        wait_s: float,
        placement: Placement | None = None,
        moving: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Prepares.

        Args:
            pool: Every worker.
            model: Served name.
            wait_s: Longest wait for a target that is away, in seconds.
            placement: Orders the workers; None = by load alone.
            moving: Begins no new session while its block runs.
        """
        self._moving = moving
        self._tries_alone = 0
        self._waiting_since_s: float | None = None
        self._placement = placement
        self._pool = pool
        self._model = model
        self._wait_s = wait_s
        self._last: GrpcTargetLink | None = None
        self._digest = ""
        self._digest_before = ""
        self._draft: GrpcDraftLink | None = None

    async def target(
        self, avoid: TargetLink | None = None, full: Collection[TargetLink] = ()
    ) -> TargetLink:
        """Returns a live target, another than the last one and those without room if there is one.

        Raises:
            UnavailableError: None came in time.
        """
        if self._last in full:
            # It never was opened there: what that target holds binds it to nothing.
            self._digest = self._digest_before
        if not await self._pool.wait_until(lambda: bool(self._candidates()), self._wait_s):
            self._wait_s = 0.0  # One wait in all: whoever asks again has waited already.
        candidates = await self._knowing_first(self._candidates())
        if not candidates:
            raise UnavailableError(f"no target worker for model {self._model}", retry_after_ms=1000)
        # The first of those that are the least unwanted: full is worse than lost, which may pass.
        chosen = min(candidates, key=lambda one: (one in full, one in (avoid, self._last)))
        self._last = chosen
        self._digest_before, self._digest = self._digest, chosen.info.digest
        return chosen

    def draft(self) -> DraftLink | None:
        """Returns a live draft that fits the target, or None; never waits."""
        if self._last is None:
            return None
        drafts = self._pool.fitting_drafts(self._last.info)
        if self._draft not in drafts:
            # The same one as long as it lives: its features were asked for at the target.
            self._draft = self._placed(drafts)[0] if drafts else None
        return self._draft

    def moving(self) -> AbstractContextManager[None]:
        """Begins no new session while the block runs."""
        return self._moving()

    async def wait_for_room(self, error: ResourceExhaustedError) -> None:
        """Waits a moment for sessions of ours to end; as often as there are any, up to two minutes.

        Raises:
            ResourceExhaustedError: None of ours has been at a target for a while, or time is up.
        """
        now_s = asyncio.get_running_loop().time()
        since_s = self._waiting_since_s = self._waiting_since_s or now_s
        others = any(link.sessions for link in self._candidates())
        self._tries_alone = 0 if others else self._tries_alone + 1
        if self._tries_alone > _MAX_TRIES_ALONE or now_s - since_s > _MOST_WAIT_FOR_ROOM_S:
            raise error
        await asyncio.sleep(_ROOM_PERIOD_S)

    async def _knowing_first(self, links: list[GrpcTargetLink]) -> list[GrpcTargetLink]:
        """Orders targets by what they know of the prompt, asking them if there is a choice."""
        placement = self._placement
        if placement is None or len(links) < 2:
            return links
        asked = (link.known_tokens(placement.prefix, _FIND_TIMEOUT_S) for link in links)
        return placement.order(links, await asyncio.gather(*asked))

    def _placed(self, links: list[LinkT]) -> list[LinkT]:
        return links if self._placement is None else self._placement.order(links)

    def _candidates(self) -> list[GrpcTargetLink]:
        return [
            link
            for link in self._pool.targets
            if link.info.name == self._model and self._digest in ("", link.info.digest)
        ]
