"""A target worker over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc.aio

from arborist.common import target_wire, wire
from arborist.common.attach import StreamLane
from arborist.common.command import FeaturesRead, Opened
from arborist.common.target_wire import TargetAnswer
from arborist.common.worker_info import WorkerInfo
from arborist.core.cost_table import CostTable
from arborist.core.engine import ModelInfo, Prefill, PrefillResult, TargetOpen, Verify, VerifyResult
from arborist.core.errors import InvalidArgumentError, SessionFailedError, UnavailableError
from arborist.core.logprobs import TokenLogprobs
from arborist.core.prefix import Prefix, named_tokens
from arborist.core.stamp import Stamp
from arborist.core.tensor import RawTensor
from arborist.core.tree import VerifyTree
from arborist.orchestrator.answers import answer_of, answers_of, broken_contract
from arborist.orchestrator.links import Features, PrefilledChunk, Reply, Verified
from arborist.orchestrator.stream import StreamWire
from arborist.orchestrator.worker_connection import WorkerConnection, WorkerProtocol
from arborist.v1 import target_pb2, target_pb2_grpc


async def _get_info(channel: grpc.aio.Channel, timeout_s: float) -> WorkerInfo:
    stub = target_pb2_grpc.TargetServiceStub(channel)
    reply = await stub.GetInfo(target_pb2.TargetServiceGetInfoRequest(), timeout=timeout_s)
    return wire.worker_info_from_pb(reply.info)


def target_protocol() -> WorkerProtocol[target_pb2.TargetCommand, TargetAnswer, WorkerInfo]:
    """Returns how to talk to target workers."""
    return WorkerProtocol(
        wire=StreamWire(
            kind="target",
            connect=lambda channel: target_pb2_grpc.TargetServiceStub(channel).Connect(),
            attach_frame=target_wire.attach_frame,
            command_frame=target_wire.command_frame,
            read_frame=target_wire.read_frame,
        ),
        get_info=_get_info,
        worker_of=lambda info: info,
        release=target_wire.release_command,
        patient=True,
    )


class GrpcTargetLink:
    """One target worker; implements `links.TargetLink`.

    Attributes:
        sessions: Ids of the sessions open here, as far as this controller knows.
    """

    def __init__(
        self,
        connection: WorkerConnection[target_pb2.TargetCommand, TargetAnswer, WorkerInfo],
    ) -> None:
        """Wraps a connection; whoever made it closes it."""
        self.connection = connection
        self.sessions: set[str] = set()
        self.prefilled_tokens = 0
        """Prompt tokens that it computed for our sessions so far."""

    @property
    def info(self) -> ModelInfo:
        """Returns what the worker holds.

        Raises:
            UnavailableError: It never answered.
        """
        info = self.connection.info
        if info is None:
            raise UnavailableError("the target worker is not connected")
        return info.model

    @property
    def keeps_features(self) -> bool:
        """Returns whether a draft may rest: what it misses can be read back later."""
        info = self.connection.info
        return info is not None and info.keeps_features

    @property
    def costs(self) -> CostTable | None:
        """Returns what its forwards take, as it said last; None from an older worker."""
        return self.connection.costs

    @property
    def worker_id(self) -> str:
        """Returns the identity of the worker's process; empty before it ever answered."""
        info = self.connection.info
        return "" if info is None else info.worker_id

    @property
    def kv_capacity_tokens(self) -> int:
        """Returns the KV positions of all its sessions; 0 before it ever answered."""
        info = self.connection.info
        return 0 if info is None else info.kv_capacity_tokens

    @property
    def num_sessions(self) -> int:
        """Returns the sessions open here, as far as this controller knows."""
        return len(self.sessions)

    async def known_tokens(self, prefix: Prefix, timeout_s: float) -> int:
        """Returns how many leading tokens the worker knows; 0 when it does not say in time."""
        channel = self.connection.control_channel
        if channel is None:
            return 0
        request = target_pb2.TargetServiceFindPrefixRequest(prefix=wire.prefix_to_pb(prefix))
        try:
            stub = target_pb2_grpc.TargetServiceStub(channel)
            reply = await stub.FindPrefix(request, timeout=timeout_s)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError):
            return 0  # Frozen, gone, or of a version that knows no prefixes.
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return 0  # Not we were cancelled but the call, because its connection was closed.
        return max(0, min(reply.known_tokens, len(prefix.tokens)))

    async def open(
        self, session_id: str, epoch: int, request: TargetOpen, deadline_s: float
    ) -> int:
        """Reserves the session; whatever ends the wait early also frees it again."""
        self.sessions.add(session_id)
        try:
            replies = await self.connection.ask(
                StreamLane.ROUND,
                lambda command_id: target_wire.open_command(command_id, session_id, epoch, request),
                deadline_s,
            )
            opened = answer_of(replies, Opened, "target")
            if not 0 <= opened.num_reused <= named_tokens(request.prefix):
                raise _broken(f"open: {opened.num_reused} tokens reused, more than were named")
            return opened.num_reused
        except BaseException as error:
            if isinstance(error, UnavailableError):
                self.connection.refusing = True  # Draining; the next look tells more.
            self.release(session_id)
            raise

    async def prefill(
        self,
        session_id: str,
        stamp: Stamp,
        begin: int,
        tokens: list[int],
        *,
        last: bool,
        want_features: bool,
        num_logprobs: int | None,
        traceparent: str,
        deadline_s: float,
    ) -> Reply[PrefilledChunk]:
        """Runs a chunk of the prompt, on the bulk lane."""
        work = Prefill(("", session_id), begin, tokens, last, want_features, num_logprobs)
        replies = await self.connection.ask(
            StreamLane.BULK,
            lambda command_id: target_wire.prefill_command(command_id, stamp, work, traceparent),
            deadline_s,
        )
        results = answers_of(replies, PrefillResult, "target")
        self.prefilled_tokens += len(tokens)
        features = None
        if want_features:
            features = _join([(one.begin, one.features) for one in results], begin, len(tokens))
        root = results[-1].root
        if last and (root is None or not 0 <= root < self.info.vocab_size):
            raise _broken("prefill: no root inside the vocabulary")
        logprobs = results[-1].logprobs
        if last and num_logprobs is not None:
            self._check_logprobs([logprobs] if logprobs else [], [root], num_logprobs)
        chunk = PrefilledChunk(features, root if last else None, logprobs if last else None)
        return Reply(chunk, replies[-1].queue_ms, replies[-1].compute_ms)

    async def verify(
        self,
        session_id: str,
        stamp: Stamp,
        committed_length: int,
        root: int,
        tree: VerifyTree,
        *,
        want_features: bool,
        want_node_tokens: bool,
        num_logprobs: int | None,
        traceparent: str,
        deadline_s: float,
    ) -> Reply[Verified]:
        """Verifies a tree."""
        work = Verify(
            ("", session_id),
            committed_length,
            root,
            tree.tokens,
            tree.parent_indices,
            want_features,
            want_node_tokens,
            num_logprobs,
        )
        replies = await self.connection.ask(
            StreamLane.ROUND,
            lambda command_id: target_wire.verify_command(command_id, stamp, work, traceparent),
            deadline_s,
        )
        result = answer_of(replies, VerifyResult, "target")
        self._check(result, work)
        verified = Verified(
            result.accepted_nodes,
            result.bonus,
            result.features if want_features else None,
            result.node_tokens,
            result.min_margin,
            result.logprobs if num_logprobs is not None else [],
        )
        return Reply(verified, replies[-1].queue_ms, replies[-1].compute_ms)

    async def read_features(
        self, session_id: str, begin: int, end: int, deadline_s: float
    ) -> Reply[Features]:
        """Reads stored features, on the bulk lane."""
        replies = await self.connection.ask(
            StreamLane.BULK,
            lambda command_id: target_wire.read_features_command(
                command_id, session_id, begin, end
            ),
            deadline_s,
        )
        parts = answers_of(replies, FeaturesRead, "target")
        features = _join([(one.begin, one.features) for one in parts], begin, end - begin)
        return Reply(features, replies[-1].queue_ms, replies[-1].compute_ms)

    def release(self, session_id: str) -> None:
        """Frees the session; fire and forget, never raises."""
        self.sessions.discard(session_id)
        self.connection.release(session_id)

    def _check(self, result: VerifyResult, work: Verify) -> None:
        """Refuses an outcome that is no path of the tree that was sent."""
        parent = 0
        for node in result.accepted_nodes:
            if node > len(work.tokens) or work.parent_indices[node - 1] != parent:
                raise _broken("verify: accepted nodes are no path of the tree")
            parent = node
        vocab_size = self.info.vocab_size
        if not 0 <= result.bonus < vocab_size:
            raise _broken("verify: the bonus token is outside the vocabulary")
        if work.want_features and result.features is None:
            raise _broken("verify: features are missing")
        if work.want_node_tokens and (
            len(result.node_tokens) != 1 + len(work.tokens)
            or not all(0 <= token < vocab_size for token in result.node_tokens)
        ):
            raise _broken("verify: node tokens do not fit the tree")
        if work.num_logprobs is not None:
            path = [work.tokens[node - 1] for node in result.accepted_nodes]
            self._check_logprobs(result.logprobs, [*path, result.bonus], work.num_logprobs)

    def _check_logprobs(
        self, logprobs: Sequence[TokenLogprobs], tokens: Sequence[int | None], num_top: int
    ) -> None:
        """Refuses log-probs that are not those of the committed tokens."""
        vocab_size = self.info.vocab_size
        if [one.token_id for one in logprobs] != list(tokens):
            raise _broken("log-probs are not those of the committed tokens")
        for one in logprobs:
            if len(one.top) != min(num_top, vocab_size) or any(
                token >= vocab_size for token, _ in one.top
            ):
                raise _broken("log-probs name too few or unknown tokens")


def _join(parts: list[tuple[int, object]], begin: int, rows: int) -> RawTensor:
    """Joins feature parts that must follow each other from `begin` on."""
    tensors: list[RawTensor] = []
    end = begin
    for part_begin, features in parts:
        if not isinstance(features, RawTensor) or part_begin != end:
            raise _broken("features are missing or out of order")
        tensors.append(features)
        end += len(features)
    if end != begin + rows:
        raise _broken(f"{end - begin} feature rows instead of {rows}")
    try:
        return wire.join_rows(tensors)
    except InvalidArgumentError as error:
        raise _broken(error.message) from None


def _broken(what: str) -> SessionFailedError:
    return broken_contract("target", what)
