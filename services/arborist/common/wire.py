"""Protobuf messages to our own types and back: what both workers share.

`target_wire` and `draft_wire` add their commands and results; nothing else maps the wire. What is
received is checked here: enums, shapes, lengths and finiteness, as `InvalidArgumentError`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from arborist.common.attach import Attach, Attached, StreamLane
from arborist.common.errors import restore_error
from arborist.common.worker_info import WorkerInfo
from arborist.core.cost_table import MAX_COST_POINTS, CostTable, RowCost
from arborist.core.engine import ModelInfo
from arborist.core.errors import ArboristError, InvalidArgumentError, UnimplementedError
from arborist.core.features import FeatureSpec
from arborist.core.prefix import MAX_PREFIX_TOKENS, MAX_SCOPE_LENGTH, Prefix
from arborist.core.sampling import SamplingParams
from arborist.core.stamp import Stamp
from arborist.core.tensor import ITEM_SIZES, DTypeName, RawTensor
from arborist.v1 import common_pb2 as pb

MAX_TENSOR_DIMENSIONS = 4
MAX_ID_LENGTH = 64
"""Longest session or controller id, in characters."""

_DTYPE_TO_PB: dict[DTypeName, pb.Dtype] = {
    "float32": pb.DTYPE_FLOAT32,
    "float16": pb.DTYPE_FLOAT16,
    "bfloat16": pb.DTYPE_BFLOAT16,
    "int32": pb.DTYPE_INT32,
    "int64": pb.DTYPE_INT64,
}
_DTYPE_FROM_PB: dict[int, DTypeName] = {int(one): name for name, one in _DTYPE_TO_PB.items()}
# numpy has no bfloat16: its bits travel as 16-bit integers.
_NUMPY_DTYPES: dict[DTypeName, npt.DTypeLike] = {
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
}
_TORCH_DTYPES: dict[DTypeName, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int32": torch.int32,
    "int64": torch.int64,
}
_NAME_OF_TORCH_DTYPE: dict[torch.dtype, DTypeName] = {
    one: name for name, one in _TORCH_DTYPES.items()
}
_BFLOAT16_EXPONENT = np.int16(0x7F80)
_LANE_TO_PB: dict[StreamLane, pb.StreamLane] = {
    StreamLane.ROUND: pb.STREAM_LANE_ROUND,
    StreamLane.BULK: pb.STREAM_LANE_BULK,
}
_LANE_FROM_PB: dict[int, StreamLane] = {int(one): lane for lane, one in _LANE_TO_PB.items()}


# --- tensors --------------------------------------------------------------------------------------
def tensor_to_pb(tensor: Tensor | RawTensor) -> pb.Tensor:
    """Returns the message of a tensor, raw or torch."""
    raw = tensor if isinstance(tensor, RawTensor) else raw_from_torch(tensor)
    return pb.Tensor(dtype=_DTYPE_TO_PB[raw.dtype], shape=raw.shape, data=raw.data)


def tensor_from_pb(field: str, message: pb.Tensor) -> RawTensor:
    """Returns a tensor's bytes, undecoded.

    Args:
        field: Name of the field, for the error.
        message: As received.
    Returns:
        The same bytes with dtype and shape.
    Raises:
        InvalidArgumentError: Unknown dtype, more than 4 dimensions, a negative one, or a length
            that does not fit the shape.
    """
    dtype = _DTYPE_FROM_PB.get(message.dtype)
    if dtype is None:
        raise InvalidArgumentError(f"{field}.dtype", message.dtype, "a known element type")
    shape = tuple(message.shape)
    if not 1 <= len(shape) <= MAX_TENSOR_DIMENSIONS or min(shape) < 0:
        raise InvalidArgumentError(
            f"{field}.shape", list(shape)[:8], f"1..{MAX_TENSOR_DIMENSIONS} dimensions, each >= 0"
        )
    length = math.prod(shape) * ITEM_SIZES[dtype]
    if len(message.data) != length:
        raise InvalidArgumentError(
            f"{field}.data", f"{len(message.data)} bytes", f"{length} bytes, as its shape says"
        )
    return RawTensor(dtype, shape, message.data)


def raw_from_torch(tensor: Tensor) -> RawTensor:
    """Copies a tensor's elements out; waits for the device that holds it.

    Args:
        tensor: Any shape; float32, float16, bfloat16, int32 or int64.
    Returns:
        Its bytes, little-endian, row-major.
    """
    dtype = _NAME_OF_TORCH_DTYPE[tensor.dtype]
    host = tensor.detach().contiguous().cpu()
    if dtype == "bfloat16":
        host = host.view(torch.int16)
    array = host.numpy().astype(_NUMPY_DTYPES[dtype], copy=False)
    return RawTensor(dtype, tuple(tensor.shape), array.tobytes())


def torch_from_raw(field: str, raw: RawTensor) -> Tensor:
    """Decodes a tensor on the host.

    Args:
        field: Name of the field, for the error.
        raw: As received; integers or floats.
    Returns:
        A tensor of its own memory, writable, shape and dtype of `raw`.
    Raises:
        InvalidArgumentError: An element is NaN or infinite.
    """
    # One copy: torch has no read-only tensors, and the bytes belong to the message.
    array = np.frombuffer(bytearray(raw.data), dtype=_NUMPY_DTYPES[raw.dtype]).reshape(raw.shape)
    if not _all_finite(raw.dtype, array):
        raise InvalidArgumentError(field, "NaN or infinity", "finite")
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if raw.dtype == "bfloat16" else tensor


def join_rows(parts: Sequence[RawTensor]) -> RawTensor:
    """Joins parts along the first dimension, without decoding them.

    Args:
        parts: At least one; equal dtype and trailing dimensions.
    Returns:
        One tensor; the part itself when there is only one.
    Raises:
        InvalidArgumentError: The parts do not fit together.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts:
        if part.dtype != first.dtype or part.shape[1:] != first.shape[1:]:
            raise InvalidArgumentError(
                "features",
                f"{part.dtype}{list(part.shape)}",
                f"like the part before: {first.dtype}[*, {', '.join(map(str, first.shape[1:]))}]",
            )
    rows = sum(part.shape[0] for part in parts)
    data = b"".join(part.data for part in parts)
    return RawTensor(first.dtype, (rows, *first.shape[1:]), data)


def slice_rows(raw: RawTensor, begin: int, end: int) -> RawTensor:
    """Returns rows [begin, end) of the first dimension, without decoding them."""
    row_bytes = math.prod(raw.shape[1:]) * ITEM_SIZES[raw.dtype]
    data = raw.data[begin * row_bytes : end * row_bytes]
    return RawTensor(raw.dtype, (end - begin, *raw.shape[1:]), data)


def split_rows(raw: RawTensor, max_part_bytes: int) -> list[RawTensor]:
    """Cuts a tensor into parts along the first dimension.

    Args:
        raw: At least one dimension.
        max_part_bytes: Most bytes of a part, unless a single row is longer.
    Returns:
        The parts in order, at least one (possibly without rows).
    """
    if len(raw.data) <= max_part_bytes:
        return [raw]
    row_bytes = math.prod(raw.shape[1:]) * ITEM_SIZES[raw.dtype]
    step = max(1, max_part_bytes // row_bytes)
    rows = raw.shape[0]
    return [slice_rows(raw, begin, min(rows, begin + step)) for begin in range(0, rows, step)]


def _all_finite(dtype: DTypeName, array: npt.NDArray[np.generic]) -> bool:
    if dtype == "bfloat16":
        # NaN and the infinities are the values whose exponent is all ones.
        bits = cast("npt.NDArray[np.int16]", array)
        return not bool(((bits & _BFLOAT16_EXPONENT) == _BFLOAT16_EXPONENT).any())
    if dtype in ("float32", "float16"):
        # Without a temporary array; NaN wins both comparisons.
        highest = np.maximum.reduce(array, axis=None, initial=0.0)
        lowest = np.minimum.reduce(array, axis=None, initial=0.0)
        return math.isfinite(highest) and math.isfinite(lowest)
    return True


# --- small parts ----------------------------------------------------------------------------------
def stamp_to_pb(stamp: Stamp) -> pb.Stamp:
    """Returns the message of a stamp."""
    return pb.Stamp(epoch=stamp.epoch, tree_id=stamp.tree_id, step=stamp.step)


def stamp_from_pb(message: pb.Stamp) -> Stamp:
    """Returns a stamp.

    Raises:
        InvalidArgumentError: A part of it is out of range (an unset stamp has epoch 0).
    """
    if message.epoch < 1 or message.tree_id < 0 or message.step < 0:
        raise InvalidArgumentError(
            "stamp",
            f"{message.epoch}/{message.tree_id}/{message.step}",
            "epoch >= 1, tree_id >= 0, step >= 0",
        )
    return Stamp(message.epoch, message.tree_id, message.step)


def base_from_pb(message: pb.Base) -> int:
    """Returns the committed length a command stands on, in tokens.

    Raises:
        UnimplementedError: A speculative base.
        InvalidArgumentError: Unset or not positive.
    """
    which = message.WhichOneof("base")
    if which == "speculative":
        raise UnimplementedError("base.speculative is reserved", metadata={"field": "base"})
    if which is None or message.committed_length < 1:
        raise InvalidArgumentError("base.committed_length", message.committed_length, ">= 1")
    return message.committed_length


def check_id(field: str, value: str) -> str:
    """Returns a session or controller id.

    Raises:
        InvalidArgumentError: Empty or longer than 64 characters.
    """
    if not 1 <= len(value) <= MAX_ID_LENGTH:
        raise InvalidArgumentError(
            field, f"{len(value)} characters", f"1..{MAX_ID_LENGTH} characters"
        )
    return value


def sampling_to_pb(params: SamplingParams) -> pb.SamplingParams:
    """Returns the message of sampling parameters."""
    return pb.SamplingParams(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seed=params.seed,
        logit_bias=dict(params.logit_bias),
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        min_tokens=params.min_tokens,
    )


def sampling_from_pb(message: pb.SamplingParams) -> SamplingParams:
    """Returns sampling parameters.

    Raises:
        InvalidArgumentError: One is out of bounds.
    """
    return SamplingParams(
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p or 1.0,
        min_p=message.min_p,
        seed=message.seed,
        logit_bias=tuple(sorted(message.logit_bias.items())),
        repetition_penalty=message.repetition_penalty or 1.0,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        min_tokens=message.min_tokens,
    )


def feature_spec_to_pb(spec: FeatureSpec) -> pb.FeatureSpec:
    """Returns the message of a feature spec."""
    dtype = pb.DTYPE_UNSPECIFIED if spec.dtype is None else _DTYPE_TO_PB[spec.dtype]
    if spec.layer_ids is None:
        return pb.FeatureSpec(final_norm=pb.FinalNormFeatures(), dtype=dtype)
    return pb.FeatureSpec(layers=pb.LayerFeatures(layer_ids=spec.layer_ids), dtype=dtype)


def feature_spec_from_pb(message: pb.FeatureSpec) -> FeatureSpec:
    """Returns a feature spec; whether the layers exist is for the target to say.

    Raises:
        InvalidArgumentError: No source, an integer dtype, or layers that do not ascend.
    """
    dtype = _DTYPE_FROM_PB.get(message.dtype)
    if message.dtype != pb.DTYPE_UNSPECIFIED and dtype not in ("float32", "float16", "bfloat16"):
        raise InvalidArgumentError("feature_spec.dtype", message.dtype, "a float type or unset")
    source = message.WhichOneof("source")
    if source is None:
        raise InvalidArgumentError("feature_spec.source", "unset", "final_norm or layers")
    if source == "final_norm":
        return FeatureSpec(None, dtype)
    layer_ids = tuple(message.layers.layer_ids)
    ascending = all(low < high for low, high in pairwise(layer_ids))
    if not layer_ids or layer_ids[0] < 0 or not ascending:
        raise InvalidArgumentError(
            "feature_spec.layers.layer_ids", list(layer_ids)[:8], "at least one, >= 0, ascending"
        )
    return FeatureSpec(layer_ids, dtype)


def tokens_from_pb(field: str, tokens: Iterable[int]) -> list[int]:
    """Returns token ids; whether they are in the vocabulary is for the model to say.

    Raises:
        InvalidArgumentError: One is negative.
    """
    ids = list(tokens)
    if ids and min(ids) < 0:
        raise InvalidArgumentError(field, min(ids), "token ids >= 0")
    return ids


def prefix_to_pb(prefix: Prefix) -> pb.Prefix:
    """Returns the message of a session's beginning."""
    return pb.Prefix(scope=prefix.scope, tokens=prefix.tokens)


def prefix_from_pb(message: pb.Prefix) -> Prefix:
    """Returns a session's beginning.

    Raises:
        InvalidArgumentError: The scope is empty or too long, or there are too many or negative
            tokens.
    """
    if not message.scope:
        raise InvalidArgumentError("prefix.scope", "empty", f"1 to {MAX_SCOPE_LENGTH} characters")
    if len(message.scope) > MAX_SCOPE_LENGTH:
        raise InvalidArgumentError(
            "prefix.scope", f"{len(message.scope)} characters", f"at most {MAX_SCOPE_LENGTH}"
        )
    if len(message.tokens) > MAX_PREFIX_TOKENS:
        raise InvalidArgumentError(
            "prefix.tokens", len(message.tokens), f"at most {MAX_PREFIX_TOKENS} tokens"
        )
    return Prefix(message.scope, tuple(tokens_from_pb("prefix.tokens", message.tokens)))


# --- errors ---------------------------------------------------------------------------------------
def error_to_pb(error: ArboristError) -> pb.Error:
    """Returns the message of an error."""
    return pb.Error(
        code=error.code.value,
        reason=error.reason,
        message=error.message,
        metadata=error.metadata,
        retry_after_ms=error.retry_after_ms,
    )


def error_from_pb(message: pb.Error) -> ArboristError:
    """Returns the error, of the very class the worker raised."""
    return restore_error(
        message.code,
        message.reason,
        message.message,
        dict(message.metadata),
        message.retry_after_ms,
    )


# --- attach and info ------------------------------------------------------------------------------
def attach_to_pb(attach: Attach) -> pb.Attach:
    """Returns the message of an Attach."""
    return pb.Attach(
        protocol_version=attach.protocol_version,
        controller_id=attach.controller_id,
        lane=_LANE_TO_PB[attach.lane],
        target_digest=attach.target_digest,
        draft_digest=attach.draft_digest,
    )


def attach_from_pb(message: pb.Attach) -> Attach:
    """Returns an Attach; version and digests are for the worker to compare.

    Raises:
        InvalidArgumentError: A bad controller id or no lane.
    """
    lane = _LANE_FROM_PB.get(message.lane)
    if lane is None:
        raise InvalidArgumentError("attach.lane", message.lane, "ROUND or BULK")
    return Attach(
        controller_id=check_id("attach.controller_id", message.controller_id),
        lane=lane,
        target_digest=message.target_digest,
        draft_digest=message.draft_digest,
        protocol_version=message.protocol_version,
    )


def attached_to_pb(attached: Attached) -> pb.Attached:
    """Returns the message of an Attached."""
    return pb.Attached(worker_id=attached.worker_id, protocol_version=attached.protocol_version)


def attached_from_pb(message: pb.Attached) -> Attached:
    """Returns an Attached."""
    return Attached(message.worker_id, message.protocol_version)


def model_info_to_pb(info: ModelInfo) -> pb.ModelInfo:
    """Returns the message of a model's description."""
    return pb.ModelInfo(
        name=info.name,
        digest=info.digest,
        vocab_size=info.vocab_size,
        hidden_size=info.hidden_size,
        num_layers=info.num_layers,
        context_length=info.context_length,
        num_parameters=info.num_parameters,
        dtype=_DTYPE_TO_PB[cast("DTypeName", info.dtype)],
        eos_token_ids=info.eos_token_ids,
        embedding_digest=info.embedding_digest,
    )


def model_info_from_pb(message: pb.ModelInfo) -> ModelInfo:
    """Returns a model's description.

    Raises:
        InvalidArgumentError: Its dtype is unknown here.
    """
    dtype = _DTYPE_FROM_PB.get(message.dtype)
    if dtype is None:
        raise InvalidArgumentError("model.dtype", message.dtype, "a known element type")
    return ModelInfo(
        name=message.name,
        digest=message.digest,
        vocab_size=message.vocab_size,
        hidden_size=message.hidden_size,
        num_layers=message.num_layers,
        context_length=message.context_length,
        num_parameters=message.num_parameters,
        dtype=dtype,
        eos_token_ids=tuple(message.eos_token_ids),
        embedding_digest=message.embedding_digest,
    )


def worker_info_to_pb(info: WorkerInfo) -> pb.WorkerInfo:
    """Returns the message of a worker's description."""
    return pb.WorkerInfo(
        worker_id=info.worker_id,
        version=info.version,
        device=info.device,
        model=model_info_to_pb(info.model),
        kv_capacity_tokens=info.kv_capacity_tokens,
        kv_reserved_tokens=info.kv_reserved_tokens,
        num_sessions=info.num_sessions,
        num_queued_rows=info.num_queued_rows,
        draining=info.draining,
        row_costs=[pb.RowCost(rows=one.rows, ms=one.ms) for one in info.row_costs],
        session_ms=info.session_ms,
        keeps_features=info.keeps_features,
    )


def worker_info_from_pb(message: pb.WorkerInfo) -> WorkerInfo:
    """Returns a worker's description.

    Raises:
        InvalidArgumentError: The model's dtype is unknown here, or its costs are none.
    """
    return WorkerInfo(
        worker_id=message.worker_id,
        version=message.version,
        device=message.device,
        model=model_info_from_pb(message.model),
        kv_capacity_tokens=message.kv_capacity_tokens,
        kv_reserved_tokens=message.kv_reserved_tokens,
        num_sessions=message.num_sessions,
        num_queued_rows=message.num_queued_rows,
        draining=message.draining,
        row_costs=_row_costs(message.row_costs, message.session_ms),
        session_ms=message.session_ms,
        keeps_features=message.keeps_features,
    )


def _row_costs(messages: Sequence[pb.RowCost], session_ms: float) -> tuple[RowCost, ...]:
    """Returns what is a table of costs; an empty one when nothing was measured."""
    costs = tuple(RowCost(one.rows, one.ms) for one in messages[: MAX_COST_POINTS + 1])
    if costs:
        CostTable(costs, session_ms)  # Refuses what is none.
    return costs
