"""A draft worker over gRPC."""

from __future__ import annotations

from typing import TypeVar, cast

import grpc.aio
from torch import Tensor

from arborist.common import draft_wire, wire
from arborist.common.attach import StreamLane
from arborist.common.command import Opened
from arborist.common.command import Reply as WireReply
from arborist.common.draft_wire import DraftAnswer
from arborist.common.worker_info import DraftWorkerInfo
from arborist.core.engine import DraftOpen, Expand, Extend, Extended, ModelInfo
from arborist.core.errors import (
    ArboristError,
    InvalidArgumentError,
    SessionFailedError,
    UnavailableError,
)
from arborist.core.features import FeatureSpec
from arborist.core.stamp import Stamp
from arborist.core.tensor import RawTensor
from arborist.core.tree import IntArray, Level
from arborist.orchestrator.links import Pairs, Reply
from arborist.orchestrator.stream import StreamWire
from arborist.orchestrator.worker_connection import WorkerConnection, WorkerProtocol
from arborist.v1 import draft_pb2, draft_pb2_grpc

AnswerT = TypeVar("AnswerT")

# Most pairs and feature bytes of one Extend; more go ahead in parts.
_MAX_PART_TOKENS = 256
_MAX_PART_BYTES = 256 << 10


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
    def _info(self) -> DraftWorkerInfo:
        info = self.connection.info
        if info is None:
            raise UnavailableError("the draft worker is not connected")
        return info

    async def open(
        self, session_id: str, epoch: int, request: DraftOpen, deadline_s: float
    ) -> None:
        """Reserves the session; whatever ends the wait early also frees it again."""
        self.sessions.add(session_id)
        try:
            replies = await self.connection.ask(
                StreamLane.ROUND,
                lambda command_id: draft_wire.open_command(command_id, session_id, epoch, request),
                deadline_s,
            )
            _answer(replies, Opened)
        except BaseException as error:
            if isinstance(error, UnavailableError):
                self.connection.refusing = True  # Draining; the next look tells more.
            self.release(session_id)
            raise

    async def append(
        self, session_id: str, stamp: Stamp, pairs: Pairs, *, traceparent: str, deadline_s: float
    ) -> Reply[None]:
        """Extend without a level, on the bulk lane, in parts."""
        queue_ms = compute_ms = 0.0
        for part in _split(pairs):
            # Steps of a bulk append count pairs, so the parts of one append lie in between.
            part_stamp = Stamp(stamp.epoch, stamp.tree_id, stamp.step + part.begin - pairs.begin)
            reply = await self._extend(
                StreamLane.BULK, session_id, part_stamp, part, 0, traceparent, deadline_s
            )
            extended = _answer([reply], Extended)
            if extended.num_pairs != part.end:
                raise _broken(f"extend: holds {extended.num_pairs} pairs instead of {part.end}")
            queue_ms += reply.queue_ms
            compute_ms += reply.compute_ms
        return Reply(None, queue_ms, compute_ms)

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
        *ahead, newest = _split(pairs)
        for part in ahead:
            # Only the first Extend of an incarnation is long: after a prefill, or after the draft
            # came back. So stamps of the prefill are still newer than its last command.
            await self.append(
                session_id,
                Stamp(stamp.epoch, 0, part.begin),
                part,
                traceparent=traceparent,
                deadline_s=deadline_s,
            )
        reply = await self._extend(
            StreamLane.ROUND, session_id, stamp, newest, top_k, traceparent, deadline_s
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
        # The wire takes raw tensors where the core's dataclass names the engine's type.
        features = cast("Tensor", pairs.features)
        work = Extend(("", session_id), pairs.begin, pairs.tokens, features, top_k)
        replies = await self.connection.ask(
            lane,
            lambda command_id: draft_wire.extend_command(command_id, stamp, work, traceparent),
            deadline_s,
        )
        return replies[-1]

    def _level(self, reply: WireReply[DraftAnswer], rows: int, top_k: int) -> Level:
        """Refuses a level that does not answer what was asked."""
        level = _answer([reply], Level)
        if level.tokens.shape[0] != rows or level.tokens.shape[1] > top_k:
            raise _broken(f"a level of shape {level.tokens.shape} instead of ({rows}, {top_k})")
        if int(level.tokens.max()) >= self.info.vocab_size:
            raise _broken("a drafted token is outside the vocabulary")
        return level


def _answer(replies: list[WireReply[DraftAnswer]], kind: type[AnswerT]) -> AnswerT:
    """Returns the answer of the expected kind, or raises the worker's error."""
    outcome = replies[-1].outcome
    if isinstance(outcome, kind):
        return outcome
    if isinstance(outcome, InvalidArgumentError) and kind is not Opened:
        # A malformed result, or a command refused that was ours to get right.
        raise _broken(outcome.message)
    if isinstance(outcome, ArboristError):
        raise outcome
    raise _broken(f"expected {kind.__name__}, got {type(outcome).__name__}")


def _split(pairs: Pairs) -> list[Pairs]:
    """Cuts pairs into parts that one Extend may carry."""
    features = pairs.features
    rows = len(pairs.tokens)
    if not isinstance(features, RawTensor) or len(features) != rows:
        raise _broken("features do not fit the tokens they pair with")
    row_bytes = max(1, len(features.data) // max(1, rows))
    step = max(1, min(_MAX_PART_TOKENS, _MAX_PART_BYTES // row_bytes))
    if rows <= step:
        return [pairs]
    return [
        Pairs(
            pairs.begin + begin,
            pairs.tokens[begin : begin + step],
            wire.slice_rows(features, begin, min(rows, begin + step)),
        )
        for begin in range(0, rows, step)
    ]


def _broken(what: str) -> SessionFailedError:
    return SessionFailedError(f"the draft worker broke its contract: {what}")
