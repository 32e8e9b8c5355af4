"""Commands and results of the draft worker: protobuf messages to our own types and back.

The controller uses `*_command` and `draft_reply`, the worker `draft_command` and `draft_result`.
Features go from the target to the draft as `RawTensor`s and become torch tensors only at the draft.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from arborist.common import wire
from arborist.common.attach import Attach, Attached
from arborist.common.candidates import read_candidates
from arborist.common.command import (
    Command,
    Opened,
    OpenSession,
    Released,
    ReleaseSession,
    Reply,
    RunWork,
)
from arborist.common.pool_wire import pool_from_pb, pool_to_pb
from arborist.common.traceparent import with_span_id
from arborist.common.worker_info import DraftWorkerInfo
from arborist.core.engine import (
    DraftOpen,
    DraftWork,
    Expand,
    ExpandTree,
    Extend,
    Extended,
    SessionKey,
)
from arborist.core.errors import ArboristError, InvalidArgumentError
from arborist.core.noise_aim import NoiseAim
from arborist.core.pool import Pool
from arborist.core.pool_policies import check_pool_policy
from arborist.core.shape import MAX_DEPTH, MAX_TOP_K
from arborist.core.stamp import Stamp
from arborist.core.tree import Level
from arborist.v1 import common_pb2
from arborist.v1 import draft_pb2 as pb

DraftAnswer: TypeAlias = Opened | Level | Pool | Extended | Released | ArboristError


# --- controller: commands -------------------------------------------------------------------------
def open_command(
    command_id: int, session_id: str, epoch: int, request: DraftOpen, traceparent: str = ""
) -> pb.DraftCommand:
    """Returns the message that opens a session, incarnation `epoch` >= 1."""
    return pb.DraftCommand(
        command_id=command_id,
        session_id=session_id,
        traceparent=traceparent,
        open=pb.DraftOpen(
            epoch=epoch,
            noise_seed=None if request.aim is None else request.aim.seed,
            noise_temperature=None if request.aim is None else request.aim.temperature,
            max_length=request.max_length,
            prefix=None if request.prefix is None else wire.prefix_to_pb(request.prefix),
        ),
    )


def extend_command(
    command_id: int, stamp: Stamp, work: Extend, traceparent: str = ""
) -> pb.DraftCommand:
    """Returns the message that appends true pairs; the session id is the work's own."""
    want_level = work.top_k > 0
    base = common_pb2.Base(committed_length=_committed_length(work)) if want_level else None
    return pb.DraftCommand(
        command_id=command_id,
        session_id=work.session[1],
        stamp=wire.stamp_to_pb(stamp),
        traceparent=traceparent,
        extend=pb.Extend(
            begin=work.begin,
            tokens=work.tokens,
            features=None if work.features is None else wire.tensor_to_pb(work.features),
            want_level=want_level,
            top_k=work.top_k,
            base=base,
        ),
    )


def expand_command(
    command_id: int, stamp: Stamp, work: Expand, traceparent: str = ""
) -> pb.DraftCommand:
    """Returns the message that expands the frontier; the session id is the work's own."""
    return pb.DraftCommand(
        command_id=command_id,
        session_id=work.session[1],
        stamp=wire.stamp_to_pb(stamp),
        traceparent=traceparent,
        expand=pb.Expand(rows=work.rows, top_k=work.top_k),
    )


def expand_tree_command(
    command_id: int,
    stamp: Stamp,
    work: ExpandTree,
    traceparent: str = "",
    level_span_ids: Sequence[int] = (),
) -> pb.DraftCommand:
    """Returns the message that grows a whole pool; the session id is the work's own.

    Args:
        command_id: Of the stream.
        stamp: One step after the Extend's.
        work: What to grow.
        traceparent: Span of level 2.
        level_span_ids: Spans of levels 2, 3, ...; empty = the traceparent's for all.
    """
    return pb.DraftCommand(
        command_id=command_id,
        session_id=work.session[1],
        stamp=wire.stamp_to_pb(stamp),
        traceparent=traceparent,
        expand_tree=pb.ExpandTree(
            policy=work.policy, depth=work.depth, top_k=work.top_k, level_span_ids=level_span_ids
        ),
    )


def release_command(command_id: int, session_id: str, traceparent: str = "") -> pb.DraftCommand:
    """Returns the message that frees a session."""
    return pb.DraftCommand(
        command_id=command_id,
        session_id=session_id,
        traceparent=traceparent,
        release=pb.DraftRelease(),
    )


def attach_frame(attach: Attach) -> pb.DraftServiceConnectRequest:
    """Returns the first frame of a stream."""
    return pb.DraftServiceConnectRequest(attach=wire.attach_to_pb(attach))


def command_frame(commands: Iterable[pb.DraftCommand]) -> pb.DraftServiceConnectRequest:
    """Returns one frame of commands, 1..256 of them."""
    return pb.DraftServiceConnectRequest(commands=pb.DraftCommands(commands=commands))


# --- controller: results --------------------------------------------------------------------------
def read_frame(frame: pb.DraftServiceConnectResponse) -> Attached | list[Reply[DraftAnswer]]:
    """Returns what a frame from the worker carries."""
    if frame.WhichOneof("frame") == "attached":
        return wire.attached_from_pb(frame.attached)
    return [draft_reply(result) for result in frame.results.results]


def draft_reply(result: pb.DraftResult) -> Reply[DraftAnswer]:
    """Returns one result.

    Args:
        result: As received.
    Returns:
        The reply. A result that breaks its contract becomes a reply whose outcome is the
        InvalidArgumentError, so that it harms its own command alone.
    """
    try:
        answer = _answer(result)
    except InvalidArgumentError as error:
        answer = error
    return Reply(result.command_id, result.queue_ms, result.compute_ms, answer)


def _answer(result: pb.DraftResult) -> DraftAnswer:
    match result.WhichOneof("result"):
        case "level":
            return level_from_pb(result.level)
        case "pool":
            return pool_from_pb(result.pool)
        case "extended":
            return Extended(result.extended.num_pairs)
        case "opened":
            return Opened(result.opened.reserved_tokens, result.opened.reused_pairs)
        case "released":
            return Released()
        case "error":
            return wire.error_from_pb(result.error)
        case unknown:
            raise InvalidArgumentError("result", unknown, "set")


def level_from_pb(message: pb.Level) -> Level:
    """Returns a level.

    Raises:
        InvalidArgumentError: Sizes that do not fit, a negative or repeated token in a row, or
            log-probs that are not finite.
    """
    rows, top_k = message.num_rows, message.top_k
    if not (1 <= rows <= MAX_TOP_K and 1 <= top_k <= MAX_TOP_K):
        raise InvalidArgumentError(
            "level", f"{rows} x {top_k}", f"1..{MAX_TOP_K} rows, top_k 1..{MAX_TOP_K}"
        )
    return Level(*read_candidates("level", message.tokens, message.logprobs, rows, top_k))


# --- worker: commands -----------------------------------------------------------------------------
def draft_command(
    message: pb.DraftCommand, controller_id: str, max_extend_tokens: int
) -> Command[DraftOpen, DraftWork]:
    """Returns a command as the worker's shell takes it.

    Args:
        message: As received.
        controller_id: Scope of the session id.
        max_extend_tokens: Most pairs of one Extend.
    Returns:
        The command; features decoded and finite; what depends on model or session is unchecked.
    Raises:
        InvalidArgumentError: A field is out of bounds.
        UnimplementedError: A reserved part is asked for.
    """
    session = (controller_id, wire.check_id("session_id", message.session_id))
    body: OpenSession[DraftOpen] | RunWork[DraftWork] | ReleaseSession
    match message.WhichOneof("command"):
        case "expand":
            body = _expand(message, session)
        case "extend":
            body = _extend(message, session, max_extend_tokens)
        case "open":
            body = _open(message.open)
        case "release":
            body = ReleaseSession()
        case "expand_tree":
            body = _expand_tree(message, session)
        case _:
            raise InvalidArgumentError("command", "unset", "one known here")
    return Command(message.command_id, session, message.traceparent, body)


def _expand(message: pb.DraftCommand, session: SessionKey) -> RunWork[DraftWork]:
    stamp = wire.stamp_from_pb(message.stamp)
    rows = list(message.expand.rows)
    if not 1 <= len(rows) <= MAX_TOP_K:
        raise InvalidArgumentError("expand.rows", len(rows), f"1..{MAX_TOP_K} rows")
    if min(rows) < 0 or len(set(rows)) != len(rows):
        raise InvalidArgumentError("expand.rows", rows, "distinct and >= 0")
    top_k = _top_k("expand.top_k", message.expand.top_k)
    return RunWork(stamp, Expand(session, rows, top_k), len(rows), "expand", bulk=False)


def _expand_tree(message: pb.DraftCommand, session: SessionKey) -> RunWork[DraftWork]:
    asked, traceparent = message.expand_tree, message.traceparent
    stamp = wire.stamp_from_pb(message.stamp)
    check_pool_policy(asked.policy, asked.depth, asked.top_k)
    if len(asked.level_span_ids) >= MAX_DEPTH:
        raise InvalidArgumentError(
            "expand_tree.level_span_ids", len(asked.level_span_ids), f"at most {MAX_DEPTH - 1}"
        )
    parents = tuple(with_span_id(traceparent, one) for one in asked.level_span_ids if traceparent)
    return RunWork(
        stamp,
        ExpandTree(session, asked.policy, asked.depth, asked.top_k),
        asked.top_k,
        "expand_tree",
        bulk=False,
        follows=True,
        level_traceparents=parents,
    )


def _extend(
    message: pb.DraftCommand, session: SessionKey, max_extend_tokens: int
) -> RunWork[DraftWork]:
    extend = message.extend
    stamp = wire.stamp_from_pb(message.stamp)
    if not 1 <= len(extend.tokens) <= max_extend_tokens:
        raise InvalidArgumentError(
            "extend.tokens", len(extend.tokens), f"1..{max_extend_tokens} tokens"
        )
    if extend.begin < 0:
        raise InvalidArgumentError("extend.begin", extend.begin, ">= 0")
    tokens = wire.tokens_from_pb("extend.tokens", extend.tokens)
    features = None
    if extend.HasField("features"):
        raw = wire.tensor_from_pb("extend.features", extend.features)
        if len(raw.shape) != 2 or raw.shape[0] != len(tokens) or raw.dtype.startswith("int"):
            raise InvalidArgumentError(
                "extend.features", f"{raw.dtype}{list(raw.shape)}", f"floats ({len(tokens)}, width)"
            )
        features = wire.torch_from_raw("extend.features", raw)
    top_k = _top_k("extend.top_k", extend.top_k) if extend.want_level else 0
    work = Extend(session, extend.begin, tokens, features, top_k)
    if extend.want_level and wire.base_from_pb(extend.base) != _committed_length(work):
        raise InvalidArgumentError(
            "base.committed_length",
            extend.base.committed_length,
            f"{_committed_length(work)}, where these pairs end",
        )
    return RunWork(stamp, work, len(tokens), "extend", bulk=not extend.want_level)


def _open(message: pb.DraftOpen) -> OpenSession[DraftOpen]:
    if message.epoch < 1:
        raise InvalidArgumentError("open.epoch", message.epoch, ">= 1")
    if message.max_length < 1:
        raise InvalidArgumentError("open.max_length", message.max_length, ">= 1")
    aim = None
    if message.HasField("noise_seed") and message.noise_temperature != 0:
        aim = NoiseAim(message.noise_seed, message.noise_temperature)
    prefix = wire.prefix_from_pb(message.prefix) if message.HasField("prefix") else None
    return OpenSession(message.epoch, DraftOpen(message.max_length, aim, prefix))


def _top_k(field: str, value: int) -> int:
    if not 1 <= value <= MAX_TOP_K:
        raise InvalidArgumentError(field, value, f"in [1, {MAX_TOP_K}]")
    return value


def _committed_length(work: Extend) -> int:
    # A feature pairs with the token after it, so pairs end one short of the committed tokens; a
    # language model is given the tokens themselves.
    return work.begin + len(work.tokens) + (0 if work.features is None else 1)


# --- worker: results ------------------------------------------------------------------------------
def draft_result(
    command_id: int, answer: DraftAnswer, queue_ms: float, compute_ms: float
) -> pb.DraftResult:
    """Returns the message that answers one command.

    Args:
        command_id: Command to answer.
        answer: What came out.
        queue_ms: Time waited for a forward.
        compute_ms: Time of the forward.
    Returns:
        The message.
    """
    result = pb.DraftResult(command_id=command_id, queue_ms=queue_ms, compute_ms=compute_ms)
    match answer:
        case Level():
            result.level.CopyFrom(level_to_pb(answer))
        case Pool():
            result.pool.CopyFrom(pool_to_pb(answer))
        case Extended():
            result.extended.CopyFrom(pb.Extended(num_pairs=answer.num_pairs))
        case Opened():
            result.opened.reserved_tokens = answer.reserved_tokens
            result.opened.reused_pairs = answer.num_reused
        case Released():
            result.released.SetInParent()
        case ArboristError():
            result.error.CopyFrom(wire.error_to_pb(answer))
    return result


def level_to_pb(level: Level) -> pb.Level:
    """Returns the message of a level."""
    rows, top_k = level.tokens.shape
    return pb.Level(
        num_rows=rows,
        top_k=top_k,
        tokens=level.tokens.ravel().tolist(),
        logprobs=level.logprobs.astype("<f4", copy=False).tobytes(),
    )


def result_frame(results: Iterable[pb.DraftResult]) -> pb.DraftServiceConnectResponse:
    """Returns one frame of results."""
    return pb.DraftServiceConnectResponse(results=pb.DraftResults(results=results))


def attached_frame(attached: Attached) -> pb.DraftServiceConnectResponse:
    """Returns the answer to an Attach."""
    return pb.DraftServiceConnectResponse(attached=wire.attached_to_pb(attached))


# --- info -----------------------------------------------------------------------------------------
def draft_info_to_pb(info: DraftWorkerInfo) -> pb.DraftServiceGetInfoResponse:
    """Returns the message of a draft worker's description."""
    spec = info.feature_spec
    return pb.DraftServiceGetInfoResponse(
        info=wire.worker_info_to_pb(info.info),
        feature_spec=None if spec is None else wire.feature_spec_to_pb(spec),
        feature_width=info.feature_width,
    )


def draft_info_from_pb(message: pb.DraftServiceGetInfoResponse) -> DraftWorkerInfo:
    """Returns a draft worker's description.

    Raises:
        InvalidArgumentError: A part of it is unknown here.
    """
    spec = message.feature_spec if message.HasField("feature_spec") else None
    return DraftWorkerInfo(
        info=wire.worker_info_from_pb(message.info),
        feature_spec=None if spec is None else wire.feature_spec_from_pb(spec),
        feature_width=message.feature_width,
    )
