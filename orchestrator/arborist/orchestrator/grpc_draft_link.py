"""A draft worker over gRPC."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import grpc.aio
from torch import Tensor

from arborist.common import draft_wire
from arborist.common.attach import StreamLane
from arborist.common.command import Opened
from arborist.common.command import Reply as WireReply
from arborist.common.draft_wire import DraftAnswer
from arborist.common.worker_info import DraftWorkerInfo
from arborist.core.cost_table import CostTable
from arborist.core.engine import DraftOpen, Expand, ExpandTree, Extend, Extended, ModelInfo
from arborist.core.errors import SessionFailedError, UnavailableError, UnimplementedError
from arborist.core.features import FeatureSpec
from arborist.core.pool import Pool
from arborist.core.prefix import named_tokens
from arborist.core.stamp import Stamp
from arborist.core.tree import IntArray, Level
from arborist.orchestrator.answers import answer_of, broken_contract
from arborist.orchestrator.links import Pairs, Reply, TreeRequest
from arborist.orchestrator.request_trace import SpanName
from arborist.orchestrator.stream import StreamWire
from arborist.orchestrator.worker_connection import WorkerConnection, WorkerProtocol
from arborist.v1 import draft_pb2, draft_pb2_grpc

_log = logging.getLogger(__name__)


async def _get_info(channel: grpc.aio.Channel, timeout_s: float) -> DraftWorkerInfo:
    stub = draft_pb2_grpc.DraftServiceStub(channel)
    reply = await stub.GetInfo(draft_pb2.DraftServiceGetInfoRequest(), timeout=timeout_s)
    return draft_wire.draft_info_from_pb(reply)


def draft_protocol() -> WorkerProtocol[draft_pb2.DraftCommand, DraftAnswer, DraftWorkerInfo]:
    """Returns how to talk to draft workers."""
    return WorkerProtocol(
        wire=StreamWire(
            kind="draft",
            connect=lambda channel: draft_pb2_grpc.DraftServiceStub(channel).Connect(),
            attach_frame=draft_wire.attach_frame,
            command_frame=draft_wire.command_frame,
            read_frame=draft_wire.read_frame,
        ),
        get_info=_get_info,
        worker_of=lambda info: info.info,
        release=draft_wire.release_command,
        patient=False,
    )


class GrpcDraftLink:
    """One draft worker; implements `links.DraftLink`.

    Attributes:
        sessions: Ids of the sessions open here, as far as this controller knows.
    """

    def __init__(
        self,
        connection: WorkerConnection[draft_pb2.DraftCommand, DraftAnswer, DraftWorkerInfo],
    ) -> None:
        """Wraps a connection; whoever made it closes it."""
        self.connection = connection
        self.sessions: set[str] = set()
        self._no_trees_id = ""

    @property
    def info(self) -> ModelInfo:
        """Returns what the worker holds.

        Raises:
            UnavailableError: It never answered.
        """
        return self._info.info.model

    @property
    def feature_spec(self) -> FeatureSpec | None:
        """Returns the features the draft wants."""
        return self._info.feature_spec

    @property
    def feature_width(self) -> int:
        """Returns the width of a feature row; 0 for a language-model draft."""
        return self._info.feature_width

    @property
    def grows_trees(self) -> bool:
        """Returns whether this worker never refused an ExpandTree as unknown."""
        return self._info.info.worker_id != self._no_trees_id

    @property
    def _info(self) -> DraftWorkerInfo:
        info = self.connection.info
        if info is None:
            raise UnavailableError("the draft worker is not connected")
        return info

    @property
    def costs(self) -> CostTable | None:
        """Returns what its forwards take, as it said last; None from an older worker."""
        return self.connection.costs

    @property
    def worker_id(self) -> str:
        """Returns the identity of the worker's process; empty before it ever answered."""
        info = self.connection.info
        return "" if info is None else info.info.worker_id

    @property
    def num_sessions(self) -> int:
        """Returns the sessions open here, as far as this controller knows."""
        return len(self.sessions)

    async def open(self, session_id: str, epoch: int, request: DraftOpen, deadline_s: float) -> int:
        """Reserves the session; whatever ends the wait early also frees it again."""
        self.sessions.add(session_id)
        try:
            replies = await self.connection.ask(
                StreamLane.ROUND,
                lambda command_id: draft_wire.open_command(command_id, session_id, epoch, request),
                deadline_s,
            )
            opened = answer_of(replies, Opened, "draft")
            shift = 0 if self.feature_spec is None else 1  # A head holds pairs.
            most = max(named_tokens(request.prefix) - shift, 0)
            if not 0 <= opened.num_reused <= most:
                raise _broken(f"open: holds {opened.num_reused} pairs, more than were named")
            return opened.num_reused
        except BaseException as error:
            if isinstance(error, UnavailableError):
                self.connection.refusing = True  # Draining; the next look tells more.
            self.release(session_id)
            raise

    async def append(
        self, session_id: str, stamp: Stamp, pairs: Pairs, *, traceparent: str, deadline_s: float
    ) -> Reply[None]:
        """Extend without a level, on the bulk lane."""
        reply = await self._extend(
            StreamLane.BULK, session_id, stamp, pairs, 0, traceparent, deadline_s
        )
        extended = answer_of([reply], Extended, "draft")
        if extended.num_pairs != pairs.end:
            raise _broken(f"extend: holds {extended.num_pairs} pairs instead of {pairs.end}")
        return Reply(None, reply.queue_ms, reply.compute_ms)

    async def extend(
        self,
        session_id: str,
        stamp: Stamp,
        pairs: Pairs,
        top_k: int,
        *,
        traceparent: str,
        deadline_s: float,
    ) -> Reply[Level]:
        """Extend that returns level 1."""
        reply = await self._extend(
            StreamLane.ROUND, session_id, stamp, pairs, top_k, traceparent, deadline_s
        )
        level = self._level(reply, 1, top_k)
        return Reply(level, reply.queue_ms, reply.compute_ms)

    async def expand(
        self,
        session_id: str,
        stamp: Stamp,
        frontier: IntArray,
        top_k: int,
        *,
        traceparent: str,
        deadline_s: float,
    ) -> Reply[Level]:
        """Expands the frontier by one level."""
        work = Expand(("", session_id), frontier.tolist(), top_k)
        replies = await self.connection.ask(
            StreamLane.ROUND,
            lambda command_id: draft_wire.expand_command(command_id, stamp, work, traceparent),
            deadline_s,
        )
        level = self._level(replies[-1], len(work.rows), top_k)
        return Reply(level, replies[-1].queue_ms, replies[-1].compute_ms)

    async def extend_tree(
        self,
        session_id: str,
        stamp: Stamp,
        pairs: Pairs,
        request: TreeRequest,
        *,
        traceparent: str,
        level_spans: Sequence[SpanName],
        deadline_s: float,
    ) -> tuple[Reply[Level], Reply[Pool]]:
        """Extend and, right behind it at the next step, ExpandTree: one trip."""
        extend = _extend_work(session_id, pairs, request.top_k)
        grow = ExpandTree(extend.session, request.policy, request.depth, request.top_k)
        level_ids = [span.span_id for span in level_spans if span.span_id]
        level_parent = level_spans[0].traceparent if level_spans else traceparent
        following = replace(stamp, step=stamp.step + 1)
        extended, grown = await self.connection.ask_together(
            StreamLane.ROUND,
            (
                lambda command_id: draft_wire.extend_command(
                    command_id, stamp, extend, traceparent
                ),
                lambda command_id: draft_wire.expand_tree_command(
                    command_id, following, grow, level_parent, level_ids
                ),
            ),
            deadline_s,
        )
        level = self._level(extended[-1], 1, request.top_k)
        try:
            pool = self._pool(grown[-1], request)
        except UnimplementedError:
            self._note_no_trees()
            raise
        return (
            Reply(level, extended[-1].queue_ms, extended[-1].compute_ms),
            Reply(pool, grown[-1].queue_ms, grown[-1].compute_ms),
        )

    def release(self, session_id: str) -> None:
        """Frees the session; fire and forget, never raises."""
        self.sessions.discard(session_id)
        self.connection.release(session_id)

    async def _extend(
        self,
        lane: StreamLane,
        session_id: str,
        stamp: Stamp,
        pairs: Pairs,
        top_k: int,
        traceparent: str,
        deadline_s: float,
    ) -> WireReply[DraftAnswer]:
        work = _extend_work(session_id, pairs, top_k)
        replies = await self.connection.ask(
            lane,
            lambda command_id: draft_wire.extend_command(command_id, stamp, work, traceparent),
            deadline_s,
        )
        return replies[-1]

    def _note_no_trees(self) -> None:
        if self.grows_trees:
            info = self._info.info
            self._no_trees_id = info.worker_id
            _log.warning(
                "draft worker %s (version %s) grows no trees by itself: asked level by level",
                self.connection.address,
                info.version,
            )

    def _level(self, reply: WireReply[DraftAnswer], rows: int, top_k: int) -> Level:
        """Refuses a level that does not answer what was asked."""
        level = answer_of([reply], Level, "draft")
        if level.tokens.shape[0] != rows or level.tokens.shape[1] > top_k:
            raise _broken(f"a level of shape {level.tokens.shape} instead of ({rows}, {top_k})")
        if int(level.tokens.max()) >= self.info.vocab_size:
            raise _broken("a drafted token is outside the vocabulary")
        return level

    def _pool(self, reply: WireReply[DraftAnswer], request: TreeRequest) -> Pool:
        """Refuses a pool that does not answer what was asked."""
        pool = answer_of([reply], Pool, "draft")
        if len(pool.levels) != request.depth - 1:
            raise _broken(f"a pool of {len(pool.levels)} levels instead of {request.depth - 1}")
        for one in pool.levels:
            tokens = one.level.tokens
            if max(tokens.shape) > request.top_k:
                raise _broken(f"a level of shape {tokens.shape}, over {request.top_k}")
            if int(tokens.max()) >= self.info.vocab_size:
                raise _broken("a drafted token is outside the vocabulary")
        return pool


def _extend_work(session_id: str, pairs: Pairs, top_k: int) -> Extend:
    # The wire takes raw tensors where the core's dataclass names the engine's type.
    features = cast("Tensor | None", pairs.features)
    return Extend(("", session_id), pairs.begin, pairs.tokens, features, top_k)


def _broken(what: str) -> SessionFailedError:
    return broken_contract("draft", what)
