"""Commands and results of the target worker: protobuf messages to our own types and back.

The controller uses `*_command` and `target_reply`, the worker `target_command` and
`target_results`. Features are torch tensors on the worker's side and `RawTensor`s, never decoded,
on the controller's; the core's dataclasses name the engine's type.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias, cast

import numpy as np
from torch import Tensor

from arborist.common import wire
from arborist.common.attach import Attach, Attached
from arborist.common.command import (
    Command,
    FeaturesRead,
    Opened,
    OpenSession,
    ReadRows,
    Released,
    ReleaseSession,
    Reply,
    RunWork,
)
from arborist.core.engine import (
    Prefill,
    PrefillResult,
    SessionKey,
    TargetOpen,
    TargetWork,
    Verify,
    VerifyResult,
)
from arborist.core.errors import ArboristError, InvalidArgumentError
from arborist.core.logprobs import MAX_LOGPROBS, TokenLogprobs
from arborist.core.schema_text import MAX_SCHEMA_BYTES
from arborist.core.shape import MAX_NUM_DRAFT_TOKENS
from arborist.core.stamp import Stamp
from arborist.core.tensor import RawTensor
from arborist.v1 import common_pb2
from arborist.v1 import target_pb2 as pb

# Most token ids that end an output: the model's own and a request's.
MAX_END_TOKEN_IDS = 256

TargetAnswer: TypeAlias = (
    Opened | PrefillResult | VerifyResult | FeaturesRead | Released | ArboristError
)


# --- controller: commands -------------------------------------------------------------------------
def open_command(
    command_id: int, session_id: str, epoch: int, request: TargetOpen, traceparent: str = ""
) -> pb.TargetCommand:
    """Returns the message that opens a session, incarnation `epoch` >= 1."""
    spec = request.feature_spec
    return pb.TargetCommand(
        command_id=command_id,
        session_id=session_id,
        traceparent=traceparent,
        open=pb.TargetOpen(
            epoch=epoch,
            feature_spec=None if spec is None else wire.feature_spec_to_pb(spec),
            sampling=wire.sampling_to_pb(request.sampling),
            max_length=request.max_length,
            max_draft_tokens=request.max_draft_tokens,
            prompt_length=request.prompt_length,
            end_token_ids=request.end_token_ids,
            prefix=None if request.prefix is None else wire.prefix_to_pb(request.prefix),
            grammar=(
                None
                if request.json_schema is None
                else common_pb2.Grammar(json_schema=request.json_schema)
            ),
        ),
    )


def prefill_command(
    command_id: int, stamp: Stamp, work: Prefill, traceparent: str = ""
) -> pb.TargetCommand:
    """Returns the message of a chunk of the prompt; the session id is the work's own."""
    return pb.TargetCommand(
        command_id=command_id,
        session_id=work.session[1],
        stamp=wire.stamp_to_pb(stamp),
        traceparent=traceparent,
        prefill=pb.Prefill(
            begin=work.begin,
            tokens=work.tokens,
            last=work.last,
            want_features=work.want_features,
            want_logprobs=work.num_logprobs is not None,
            num_logprobs=work.num_logprobs or 0,
        ),
    )


def verify_command(
    command_id: int, stamp: Stamp, work: Verify, traceparent: str = ""
) -> pb.TargetCommand:
    """Returns the message that verifies a tree; the session id is the work's own."""
    return pb.TargetCommand(
        command_id=command_id,
        session_id=work.session[1],
        stamp=wire.stamp_to_pb(stamp),
        traceparent=traceparent,
        verify=pb.Verify(
            base=common_pb2.Base(committed_length=work.committed_length),
            root=work.root,
            tokens=work.tokens,
            parent_indices=work.parent_indices,
            want_features=work.want_features,
            want_node_tokens=work.want_node_tokens,
            want_logprobs=work.num_logprobs is not None,
            num_logprobs=work.num_logprobs or 0,
        ),
    )


def read_features_command(
    command_id: int, session_id: str, begin: int, end: int, traceparent: str = ""
) -> pb.TargetCommand:
    """Returns the message that reads features of positions [begin, end)."""
    return pb.TargetCommand(
        command_id=command_id,
        session_id=session_id,
        traceparent=traceparent,
        read_features=pb.ReadFeatures(begin=begin, end=end),
    )


def release_command(command_id: int, session_id: str, traceparent: str = "") -> pb.TargetCommand:
    """Returns the message that frees a session."""
    return pb.TargetCommand(
        command_id=command_id,
        session_id=session_id,
        traceparent=traceparent,
        release=pb.TargetRelease(),
    )


def attach_frame(attach: Attach) -> pb.TargetServiceConnectRequest:
    """Returns the first frame of a stream."""
    return pb.TargetServiceConnectRequest(attach=wire.attach_to_pb(attach))


def command_frame(commands: Iterable[pb.TargetCommand]) -> pb.TargetServiceConnectRequest:
    """Returns one frame of commands, 1..256 of them."""
    return pb.TargetServiceConnectRequest(commands=pb.TargetCommands(commands=commands))


# --- controller: results --------------------------------------------------------------------------
def read_frame(
    frame: pb.TargetServiceConnectResponse,
) -> Attached | list[Reply[TargetAnswer]]:
    """Returns what a frame from the worker carries."""
    if frame.WhichOneof("frame") == "attached":
        return wire.attached_from_pb(frame.attached)
    return [target_reply(result) for result in frame.results.results]


def target_reply(result: pb.TargetResult) -> Reply[TargetAnswer]:
    """Returns one result, or one part of it.

    Args:
        result: As received.
    Returns:
        The reply, features as `RawTensor`. A result that breaks its contract becomes a reply whose
        outcome is the InvalidArgumentError, so that it harms its own command alone.
    """
    try:
        answer = _answer(result)
    except InvalidArgumentError as error:
        answer = error
    return Reply(result.command_id, result.queue_ms, result.compute_ms, answer, result.more)


def _answer(result: pb.TargetResult) -> TargetAnswer:
    match result.WhichOneof("result"):
        case "verify":
            return _verify_result(result.verify)
        case "prefill":
            prefill = result.prefill
            features = _opaque(prefill.features) if prefill.HasField("features") else None
            root = prefill.root if prefill.HasField("root") else None
            if prefill.begin < 0 or (root is not None and root < 0):
                raise InvalidArgumentError("prefill", f"{prefill.begin}, {root}", ">= 0")
            has_logprobs = prefill.HasField("root_logprobs")
            logprobs = _read_logprobs(prefill.root_logprobs) if has_logprobs else None
            return PrefillResult(prefill.begin, cast("Tensor | None", features), root, logprobs)
        case "features":
            read = result.features
            return FeaturesRead(read.begin, _opaque(read.features))
        case "opened":
            return Opened(result.opened.reserved_tokens, result.opened.reused_tokens)
        case "released":
            return Released()
        case "error":
            return wire.error_from_pb(result.error)
        case unknown:
            raise InvalidArgumentError("result", unknown, "set")


def _verify_result(message: pb.VerifyResult) -> VerifyResult:
    accepted = tuple(message.accepted_nodes)
    previous = 0
    for node in accepted:
        if node <= previous:
            raise InvalidArgumentError("accepted_nodes", list(accepted), "ascending from 1")
        previous = node
    if message.bonus < 0:
        raise InvalidArgumentError("bonus", message.bonus, "a token id >= 0")
    features = _opaque(message.features) if message.HasField("features") else None
    if features is not None and len(features) != 1 + len(accepted):
        raise InvalidArgumentError(
            "features", f"{len(features)} rows", f"{1 + len(accepted)}, root + accepted nodes"
        )
    return VerifyResult(
        accepted,
        message.bonus,
        cast("Tensor | None", features),
        list(message.node_tokens),
        message.min_margin,
        [_read_logprobs(one) for one in message.logprobs],
    )


def _read_logprobs(message: pb.TokenLogprobs) -> TokenLogprobs:
    ids = wire.tokens_from_pb("logprobs.token_ids", message.token_ids)
    size = 4 * len(ids)
    if not 1 <= len(ids) <= 1 + MAX_LOGPROBS or len(message.logprobs) != size:
        raise InvalidArgumentError(
            "logprobs",
            f"{len(ids)} ids, {len(message.logprobs)} bytes",
            f"1..{1 + MAX_LOGPROBS} ids, 4 bytes for each",
        )
    values = np.frombuffer(message.logprobs, dtype="<f4")
    if not bool((values <= 0).all()):  # Also false for NaN; −inf is a probability of 0.
        raise InvalidArgumentError("logprobs.logprobs", "NaN or positive", "at most 0")
    own, *others = values.tolist()
    return TokenLogprobs(ids[0], own, tuple(zip(ids[1:], others, strict=True)))


def _write_logprobs(one: TokenLogprobs) -> pb.TokenLogprobs:
    values = np.array([one.logprob, *(value for _, value in one.top)], dtype="<f4")
    return pb.TokenLogprobs(
        token_ids=[one.token_id, *(token for token, _ in one.top)], logprobs=values.tobytes()
    )


def _opaque(message: common_pb2.Tensor) -> RawTensor:
    raw = wire.tensor_from_pb("features", message)
    if len(raw.shape) != 2:
        raise InvalidArgumentError("features.shape", list(raw.shape), "(rows, width)")
    return raw


# --- worker: commands -----------------------------------------------------------------------------
def target_command(
    message: pb.TargetCommand, controller_id: str, max_prefill_tokens: int
) -> Command[TargetOpen, TargetWork]:
    """Returns a command as the worker's shell takes it.

    Args:
        message: As received.
        controller_id: Scope of the session id.
        max_prefill_tokens: Longest chunk of a prompt, in tokens.
    Returns:
        The command; what depends on model or session is still unchecked.
    Raises:
        InvalidArgumentError: A field is out of bounds.
    """
    session = (controller_id, wire.check_id("session_id", message.session_id))
    match message.WhichOneof("command"):
        case "verify":
            body: OpenSession[TargetOpen] | RunWork[TargetWork] | ReadRows | ReleaseSession = (
                _verify(message, session)
            )
        case "prefill":
            body = _prefill(message, session, max_prefill_tokens)
        case "open":
            body = _open(message.open)
        case "read_features":
            begin, end = message.read_features.begin, message.read_features.end
            if not 0 <= begin < end:
                raise InvalidArgumentError("read_features", f"[{begin}, {end})", "0 <= begin < end")
            body = ReadRows(begin, end)
        case "release":
            body = ReleaseSession()
        case _:
            raise InvalidArgumentError("command", "unset", "one known here")
    return Command(message.command_id, session, message.traceparent, body)


def _verify(message: pb.TargetCommand, session: SessionKey) -> RunWork[TargetWork]:
    verify = message.verify
    stamp = wire.stamp_from_pb(message.stamp)
    if len(verify.tokens) > MAX_NUM_DRAFT_TOKENS:
        raise InvalidArgumentError(
            "tokens", len(verify.tokens), f"at most {MAX_NUM_DRAFT_TOKENS} drafted nodes"
        )
    if len(verify.parent_indices) != len(verify.tokens):
        raise InvalidArgumentError(
            "parent_indices",
            len(verify.parent_indices),
            f"as many as tokens ({len(verify.tokens)})",
        )
    if verify.root < 0:
        raise InvalidArgumentError("root", verify.root, "a token id >= 0")
    work = Verify(
        session=session,
        committed_length=wire.base_from_pb(verify.base),
        root=verify.root,
        tokens=list(verify.tokens),
        parent_indices=list(verify.parent_indices),
        want_features=verify.want_features,
        want_node_tokens=verify.want_node_tokens,
        num_logprobs=_num_logprobs(verify),
    )
    return RunWork(stamp, work, 1 + len(work.tokens), "verify", bulk=False)


def _prefill(
    message: pb.TargetCommand, session: SessionKey, max_prefill_tokens: int
) -> RunWork[TargetWork]:
    prefill = message.prefill
    stamp = wire.stamp_from_pb(message.stamp)
    if not 1 <= len(prefill.tokens) <= max_prefill_tokens:
        raise InvalidArgumentError(
            "prefill.tokens", len(prefill.tokens), f"1..{max_prefill_tokens} tokens"
        )
    if prefill.begin < 0:
        raise InvalidArgumentError("prefill.begin", prefill.begin, ">= 0")
    tokens = wire.tokens_from_pb("prefill.tokens", prefill.tokens)
    work = Prefill(
        session,
        prefill.begin,
        tokens,
        prefill.last,
        prefill.want_features,
        _num_logprobs(prefill),
    )
    return RunWork(stamp, work, len(tokens), "prefill", bulk=True)


def _num_logprobs(message: pb.Prefill | pb.Verify) -> int | None:
    if not 0 <= message.num_logprobs <= MAX_LOGPROBS:
        raise InvalidArgumentError("num_logprobs", message.num_logprobs, f"in [0, {MAX_LOGPROBS}]")
    return message.num_logprobs if message.want_logprobs else None


def _open(message: pb.TargetOpen) -> OpenSession[TargetOpen]:
    if message.epoch < 1:
        raise InvalidArgumentError("open.epoch", message.epoch, ">= 1")
    if message.max_length < 1:
        raise InvalidArgumentError("open.max_length", message.max_length, ">= 1")
    if not 0 <= message.max_draft_tokens <= MAX_NUM_DRAFT_TOKENS:
        raise InvalidArgumentError(
            "open.max_draft_tokens", message.max_draft_tokens, f"in [0, {MAX_NUM_DRAFT_TOKENS}]"
        )
    if not 0 <= message.prompt_length <= message.max_length:
        raise InvalidArgumentError(
            "open.prompt_length", message.prompt_length, f"in [0, {message.max_length}], max_length"
        )
    if len(message.end_token_ids) > MAX_END_TOKEN_IDS:
        raise InvalidArgumentError(
            "open.end_token_ids",
            f"{len(message.end_token_ids)} ids",
            f"at most {MAX_END_TOKEN_IDS}",
        )
    spec = message.feature_spec if message.HasField("feature_spec") else None
    request = TargetOpen(
        sampling=wire.sampling_from_pb(message.sampling),
        feature_spec=None if spec is None else wire.feature_spec_from_pb(spec),
        max_length=message.max_length,
        max_draft_tokens=message.max_draft_tokens,
        prompt_length=message.prompt_length,
        end_token_ids=tuple(wire.tokens_from_pb("open.end_token_ids", message.end_token_ids)),
        prefix=wire.prefix_from_pb(message.prefix) if message.HasField("prefix") else None,
        json_schema=_schema(message.grammar) if message.HasField("grammar") else None,
    )
    return OpenSession(message.epoch, request)


def _schema(message: common_pb2.Grammar) -> str:
    size = len(message.json_schema.encode())
    if not 1 <= size <= MAX_SCHEMA_BYTES:
        raise InvalidArgumentError(
            "open.grammar.json_schema", f"{size} bytes", f"1..{MAX_SCHEMA_BYTES} bytes"
        )
    return message.json_schema


# --- worker: results ------------------------------------------------------------------------------
def target_results(
    command_id: int, answer: TargetAnswer, queue_ms: float, compute_ms: float, max_part_bytes: int
) -> list[pb.TargetResult]:
    """Returns the messages that answer one command.

    Args:
        command_id: Command to answer.
        answer: What came out; features raw or torch.
        queue_ms: Time waited for a forward.
        compute_ms: Time of the forward.
        max_part_bytes: Most feature bytes of one part of a prefill or a read.
    Returns:
        One message, or the parts of a long answer in order, `more` set on all but the last.
    """
    match answer:
        case VerifyResult():
            features = answer.features
            parts = [
                pb.TargetResult(
                    verify=pb.VerifyResult(
                        accepted_nodes=answer.accepted_nodes,
                        bonus=answer.bonus,
                        features=None if features is None else wire.tensor_to_pb(features),
                        node_tokens=answer.node_tokens,
                        min_margin=answer.min_margin,
                        logprobs=[_write_logprobs(one) for one in answer.logprobs],
                    )
                )
            ]
        case PrefillResult():
            parts = _prefill_parts(answer, max_part_bytes)
        case FeaturesRead():
            parts = _read_parts(answer, max_part_bytes)
        case Opened():
            opened = pb.TargetOpened(
                reserved_tokens=answer.reserved_tokens, reused_tokens=answer.num_reused
            )
            parts = [pb.TargetResult(opened=opened)]
        case Released():
            parts = [pb.TargetResult(released=pb.TargetReleased())]
        case ArboristError():
            parts = [pb.TargetResult(error=wire.error_to_pb(answer))]
    for part in parts:
        part.command_id = command_id
        part.queue_ms = queue_ms
        part.compute_ms = compute_ms
        part.more = part is not parts[-1]
    return parts


def result_frame(results: Iterable[pb.TargetResult]) -> pb.TargetServiceConnectResponse:
    """Returns one frame of results."""
    return pb.TargetServiceConnectResponse(results=pb.TargetResults(results=results))


def attached_frame(attached: Attached) -> pb.TargetServiceConnectResponse:
    """Returns the answer to an Attach."""
    return pb.TargetServiceConnectResponse(attached=wire.attached_to_pb(attached))


def _prefill_parts(answer: PrefillResult, max_part_bytes: int) -> list[pb.TargetResult]:
    begin = answer.begin
    parts = []
    if answer.features is not None:
        for rows in wire.split_rows(as_raw(answer.features), max_part_bytes):
            features = wire.tensor_to_pb(rows)
            parts.append(pb.TargetResult(prefill=pb.PrefillResult(begin=begin, features=features)))
            begin += len(rows)
    else:
        parts.append(pb.TargetResult(prefill=pb.PrefillResult(begin=begin)))
    if answer.root is not None:
        parts[-1].prefill.root = answer.root
    if answer.logprobs is not None:
        parts[-1].prefill.root_logprobs.CopyFrom(_write_logprobs(answer.logprobs))
    return parts


def _read_parts(answer: FeaturesRead, max_part_bytes: int) -> list[pb.TargetResult]:
    begin = answer.begin
    parts = []
    for rows in wire.split_rows(answer.features, max_part_bytes):
        features = wire.tensor_to_pb(rows)
        parts.append(
            pb.TargetResult(features=pb.ReadFeaturesResult(begin=begin, features=features))
        )
        begin += len(rows)
    return parts


def as_raw(features: Tensor | RawTensor) -> RawTensor:
    """Returns features as bytes, copying them off their device if they still are a tensor."""
    return features if isinstance(features, RawTensor) else wire.raw_from_torch(features)
