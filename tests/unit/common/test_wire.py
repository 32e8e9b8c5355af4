"""The wire mapping: a round trip is the identity, and corrupt messages are refused."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arborist.common import draft_wire, target_wire, wire
from arborist.common.attach import Attach, Attached, StreamLane
from arborist.common.command import (
    FeaturesRead,
    Opened,
    OpenSession,
    ReadRows,
    Released,
    ReleaseSession,
    Reply,
    RunWork,
)
from arborist.common.worker_info import DraftWorkerInfo, WorkerInfo
from arborist.core.cost_table import RowCost
from arborist.core.engine import (
    DraftOpen,
    Expand,
    Extend,
    Extended,
    ModelInfo,
    Prefill,
    PrefillResult,
    TargetOpen,
    Verify,
    VerifyResult,
)
from arborist.core.errors import (
    InvalidArgumentError,
    ResourceExhaustedError,
    StaleStampError,
)
from arborist.core.features import FeatureSpec
from arborist.core.logprobs import TokenLogprobs
from arborist.core.noise_aim import NoiseAim
from arborist.core.sampling import SamplingParams
from arborist.core.stamp import Stamp
from arborist.core.tensor import RawTensor
from arborist.core.tree import Level
from arborist.v1 import common_pb2, draft_pb2, target_pb2

SESSION = ("controller", "session")
STAMP = Stamp(3, 7, 2)
FLOATS = ("float32", "float16", "bfloat16")
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int32": torch.int32,
    "int64": torch.int64,
}

token_ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20)
shapes = st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple)


@st.composite
def tensors(draw: Any, dtypes: Any = tuple(DTYPES)) -> torch.Tensor:
    """Finite tensors of any dtype and shape that may cross the wire."""
    dtype, shape = DTYPES[draw(st.sampled_from(dtypes))], draw(shapes)
    seed = draw(st.integers(0, 2**32 - 1))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 1000
    return values.to(dtype)


def sent(message: Any) -> Any:
    """The message as the other side gets it."""
    return type(message).FromString(message.SerializeToString())


# --- tensors --------------------------------------------------------------------------------------
@given(tensors())
def test_a_tensor_crosses_bit_by_bit(tensor: torch.Tensor) -> None:
    """Torch to bytes to torch is the identity for every dtype and shape."""
    raw = wire.tensor_from_pb("t", sent(wire.tensor_to_pb(tensor)))
    back = wire.torch_from_raw("t", raw)

    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert torch.equal(back, tensor)


def test_a_received_tensor_is_writable_and_its_own() -> None:
    """Neither torch warns nor does writing change the message."""
    raw = RawTensor("float32", (2,), np.array([1, 2], dtype="<f4").tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = wire.torch_from_raw("t", raw)
    tensor.zero_()

    assert raw.data == np.array([1, 2], dtype="<f4").tobytes()


def test_strides_do_not_cross() -> None:
    """A transposed tensor is sent row-major."""
    tensor = torch.arange(6, dtype=torch.float32).view(2, 3).T
    assert torch.equal(wire.torch_from_raw("t", wire.raw_from_torch(tensor)), tensor)


def test_bytes_are_little_endian() -> None:
    """What other languages read is fixed."""
    assert wire.raw_from_torch(torch.tensor([1], dtype=torch.int32)).data == b"\x01\0\0\0"
    assert wire.raw_from_torch(torch.tensor([1.0], dtype=torch.bfloat16)).data == b"\x80\x3f"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(dtype: str, value: float) -> None:
    """One bad element is enough, in every float type."""
    raw = wire.raw_from_torch(torch.tensor([1.0, value, 2.0], dtype=DTYPES[dtype]))
    with pytest.raises(InvalidArgumentError) as refused:
        wire.torch_from_raw("features", raw)

    assert refused.value.metadata["field"] == "features"


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_finite_values_pass(dtype: str) -> None:
    """The check is of finiteness, not of size."""
    limits = torch.finfo(DTYPES[dtype])
    tensor = torch.tensor([limits.max, limits.min, limits.tiny, 0.0], dtype=DTYPES[dtype])
    assert torch.equal(wire.torch_from_raw("t", wire.raw_from_torch(tensor)), tensor)


@given(
    dtype=st.integers(-1, 9),
    shape=st.lists(st.integers(-3, 6) | st.sampled_from([2**62, -(2**63)]), max_size=6),
    data=st.binary(max_size=64),
)
def test_a_corrupt_tensor_is_refused(dtype: int, shape: list[int], data: bytes) -> None:
    """Any message is either a tensor whose length fits, or an InvalidArgumentError."""
    message = common_pb2.Tensor(dtype=dtype, shape=shape, data=data)  # type: ignore[arg-type]
    try:
        raw = wire.tensor_from_pb("t", message)
    except InvalidArgumentError:
        return
    assert raw.data == data
    assert list(raw.shape) == shape
    assert np.prod(shape) * (8 if raw.dtype == "int64" else 4 if "32" in raw.dtype else 2) == len(
        data
    )


@given(tensors(dtypes=FLOATS), st.integers(1, 200))
def test_parts_join_to_the_whole(tensor: torch.Tensor, max_part_bytes: int) -> None:
    """Splitting and joining along rows is the identity, and parts keep to their size."""
    raw = wire.raw_from_torch(tensor)
    parts = wire.split_rows(raw, max_part_bytes)

    assert wire.join_rows(parts) == raw
    assert all(len(part.data) <= max_part_bytes or len(part) == 1 for part in parts)


def test_parts_of_different_widths_do_not_join() -> None:
    """A worker that changes its mind half-way is refused."""
    one, other = RawTensor("float32", (1, 1), bytes(4)), RawTensor("float32", (1, 2), bytes(8))
    with pytest.raises(InvalidArgumentError):
        wire.join_rows([one, other])


# --- parts ----------------------------------------------------------------------------------------
@given(st.integers(1, 2**62), st.integers(0, 2**62), st.integers(0, 2**31 - 1))
def test_stamps_cross(epoch: int, tree_id: int, step: int) -> None:
    """All bits of a stamp survive."""
    stamp = Stamp(epoch, tree_id, step)
    assert wire.stamp_from_pb(sent(wire.stamp_to_pb(stamp))) == stamp


@given(
    st.builds(
        SamplingParams,
        temperature=st.just(0.0) | st.floats(1e-6, 100),
        top_k=st.integers(0, 2**31 - 1),
        top_p=st.floats(1e-9, 1),
        min_p=st.floats(0, 1),
        seed=st.integers(0, 2**64 - 1),
        logit_bias=st.dictionaries(
            st.integers(0, 2**31 - 1), st.floats(-100, 100, width=32), max_size=5
        ).map(lambda bias: tuple(sorted(bias.items()))),
        repetition_penalty=st.floats(0.01, 2),
        presence_penalty=st.floats(-2, 2),
        frequency_penalty=st.floats(-2, 2),
        min_tokens=st.integers(0, 2**31 - 1),
    )
)
def test_sampling_crosses(params: SamplingParams) -> None:
    """Parameters decide the output: not one bit may change."""
    assert wire.sampling_from_pb(sent(wire.sampling_to_pb(params))) == params


def test_unset_sampling_is_greedy() -> None:
    """Defaults of the wire are the defaults of the core; neutral penalties are no penalties."""
    neutral = common_pb2.SamplingParams(repetition_penalty=1.0)
    assert wire.sampling_from_pb(common_pb2.SamplingParams()) == SamplingParams()
    assert wire.sampling_from_pb(neutral) == SamplingParams()


@pytest.mark.parametrize(
    "message",
    [
        common_pb2.SamplingParams(repetition_penalty=2.1),
        common_pb2.SamplingParams(presence_penalty=-2.5),
        common_pb2.SamplingParams(frequency_penalty=float("nan")),
        common_pb2.SamplingParams(min_tokens=-1),
        common_pb2.SamplingParams(logit_bias={-5: 1.0}),
        common_pb2.SamplingParams(logit_bias={5: float("inf")}),
    ],
)
def test_processors_out_of_bounds_are_refused(message: common_pb2.SamplingParams) -> None:
    """A worker does not trust its controller with them."""
    with pytest.raises(InvalidArgumentError):
        wire.sampling_from_pb(message)


@pytest.mark.parametrize(
    "spec",
    [
        FeatureSpec(),
        FeatureSpec(None, "bfloat16"),
        FeatureSpec((0,)),
        FeatureSpec((2, 16, 29), "float16"),
    ],
)
def test_feature_specs_cross(spec: FeatureSpec) -> None:
    """Source, layers and dtype survive."""
    assert wire.feature_spec_from_pb(sent(wire.feature_spec_to_pb(spec))) == spec


@pytest.mark.parametrize("layers", [[], [-1, 2], [2, 2], [3, 1]])
def test_layers_ascend(layers: list[int]) -> None:
    """Their order is part of the feature's meaning."""
    message = common_pb2.FeatureSpec(layers=common_pb2.LayerFeatures(layer_ids=layers))
    with pytest.raises(InvalidArgumentError):
        wire.feature_spec_from_pb(message)


INFO = WorkerInfo(
    worker_id="w" * 32,
    version="0.1.0",
    device="cuda:1",
    model=ModelInfo(
        "m", "d" * 64, 32_000, 4096, 32, 8192, 8_000_000_000, "bfloat16", (2, 7), "e" * 64
    ),
    kv_capacity_tokens=1 << 40,
    kv_reserved_tokens=17,
    num_sessions=3,
    num_queued_rows=2,
    draining=True,
    row_costs=(RowCost(1.0, 9.5), RowCost(16.25, 11.75)),
)


@pytest.mark.parametrize("spec", [None, FeatureSpec((1, 2, 3))])
def test_worker_info_crosses(spec: FeatureSpec | None) -> None:
    """Every field survives, also for a draft that wants no features."""
    info = DraftWorkerInfo(INFO, spec, 12_288 if spec else 0)
    assert draft_wire.draft_info_from_pb(sent(draft_wire.draft_info_to_pb(info))) == info


def test_costs_that_are_none_are_refused() -> None:
    """A negative time would make any tree look good."""
    message = wire.worker_info_to_pb(INFO)
    message.row_costs[1].ms = -1.0
    with pytest.raises(InvalidArgumentError, match="costs"):
        wire.worker_info_from_pb(message)


@pytest.mark.parametrize("lane", list(StreamLane))
def test_attach_crosses(lane: StreamLane) -> None:
    """Either service reads what the controller wrote."""
    attach = Attach("c", lane, "t" * 64, "d" * 64)
    attached = Attached("w" * 32)
    for module in (target_wire, draft_wire):
        assert wire.attach_from_pb(sent(module.attach_frame(attach)).attach) == attach
        assert module.read_frame(sent(module.attached_frame(attached))) == attached


# --- target ---------------------------------------------------------------------------------------
def received_by_target(message: target_pb2.TargetCommand) -> Any:
    """The command as the target's shell sees it."""
    frame = sent(target_wire.command_frame([message]))
    command = target_wire.target_command(frame.commands.commands[0], SESSION[0], 4096)
    assert (command.command_id, command.session) == (5, SESSION)
    return command.body


@given(
    token_ids,
    st.integers(1, 2**31 - 1),
    st.integers(0, 2**31 - 1),
    st.booleans(),
    st.booleans(),
)
def test_verify_crosses(
    tokens: list[int], length: int, root: int, want_features: bool, want_node_tokens: bool
) -> None:
    """The tree arrives as it was sent."""
    parents = [node // 2 for node in range(len(tokens))]
    num_logprobs = length % 22 - 1 if length % 22 else None
    work = Verify(
        SESSION, length, root, tokens, parents, want_features, want_node_tokens, num_logprobs
    )
    body = received_by_target(target_wire.verify_command(5, STAMP, work))

    assert body == RunWork(STAMP, work, 1 + len(tokens), "verify", bulk=False)


@given(token_ids, st.integers(0, 2**31 - 1), st.booleans(), st.booleans())
def test_prefill_crosses(tokens: list[int], begin: int, last: bool, want_features: bool) -> None:
    """A chunk arrives as it was sent."""
    num_logprobs = begin % 22 - 1 if begin % 22 else None
    work = Prefill(SESSION, begin, tokens, last, want_features, num_logprobs)
    body = received_by_target(target_wire.prefill_command(5, STAMP, work))

    assert body == RunWork(STAMP, work, len(tokens), "prefill", bulk=True)


def test_the_other_target_commands_cross() -> None:
    """Open, ReadFeatures and Release arrive as they were sent."""
    request = TargetOpen(SamplingParams(0.5, seed=9), FeatureSpec((1, 2)), 512, 60)
    bare = replace(request, feature_spec=None, prompt_length=511, end_token_ids=(2, 9, 0))
    bare = replace(bare, json_schema='{"const": "é"}')
    name = SESSION[1]

    assert received_by_target(target_wire.open_command(5, name, 4, request)) == OpenSession(
        4, request
    )
    assert received_by_target(target_wire.open_command(5, name, 4, bare)) == OpenSession(4, bare)
    assert received_by_target(target_wire.read_features_command(5, name, 3, 9)) == ReadRows(3, 9)
    assert received_by_target(target_wire.release_command(5, name)) == ReleaseSession()


def test_a_traceparent_crosses() -> None:
    """Either service hands it on."""
    target = target_wire.release_command(1, "s", "00-a-b-01")
    draft = draft_wire.release_command(1, "s", "00-a-b-01")

    assert target_wire.target_command(target, "c", 1).traceparent == "00-a-b-01"
    assert draft_wire.draft_command(draft, "c", 1).traceparent == "00-a-b-01"


def received_from_target(answer: Any, max_part_bytes: int = 1 << 18) -> list[Reply]:
    """The replies a controller sees."""
    results = target_wire.target_results(8, answer, 1.5, 2.5, max_part_bytes)
    replies = target_wire.read_frame(sent(target_wire.result_frame(results)))
    assert isinstance(replies, list)
    for reply in replies:
        assert (reply.command_id, reply.queue_ms, reply.compute_ms) == (8, 1.5, 2.5)
    assert [reply.more for reply in replies] == [True] * (len(replies) - 1) + [False]
    return replies


@given(st.integers(0, 6), tensors(dtypes=FLOATS), st.booleans())
def test_verify_results_cross_with_features_undecoded(
    accepted: int, other: torch.Tensor, wanted: bool
) -> None:
    """What the controller holds are the target's very bytes, whatever they say."""
    data = bytes(range(256))[: 4 * 2 * (1 + accepted)]
    features: Any = RawTensor("float32", (1 + accepted, 2), data) if wanted else None
    answer = VerifyResult(tuple(range(1, 1 + accepted)), 7, features, [1, 2, 3], 0.25)

    assert received_from_target(answer)[0].outcome == answer
    # From a torch tensor the same bytes are made.
    tensor: Any = torch.zeros(1 + accepted, 2, dtype=other.dtype)
    reply = received_from_target(replace(answer, features=tensor))[0]
    assert torch.equal(wire.torch_from_raw("f", reply.outcome.features), tensor)


@given(st.integers(1, 9), st.integers(1, 40), st.one_of(st.none(), st.integers(0, 99)))
def test_prefill_results_cross_in_parts(rows: int, max_part_bytes: int, root: int | None) -> None:
    """Parts follow each other without a gap; the root comes with the last."""
    whole = RawTensor("float32", (rows, 2), bytes(range(8 * rows)))
    answer: Any = PrefillResult(100, whole, root)  # type: ignore[arg-type]
    parts = [reply.outcome for reply in received_from_target(answer, max_part_bytes)]

    assert wire.join_rows([part.features for part in parts]) == whole
    begin = 100
    for part in parts:
        assert part.begin == begin
        begin += len(part.features)
    assert [part.root for part in parts] == [None] * (len(parts) - 1) + [root]


def test_prefill_without_features_is_one_part() -> None:
    """A prompt whose features nobody wants costs one small message."""
    answer = PrefillResult(3, None, 0)
    assert [one.outcome for one in received_from_target(answer)] == [answer]


LOGPROBS = [
    TokenLogprobs(7, -0.5, ((3, -0.25), (7, -0.5), (0, float("-inf")))),
    TokenLogprobs(2**31 - 1, 0.0),
]


def test_logprobs_cross() -> None:
    """Every bit of an fp32 log-prob arrives, impossible tokens included."""
    verified = VerifyResult((1,), 7, None, [], 0.25, LOGPROBS)
    prefilled = PrefillResult(3, None, 0, LOGPROBS[0])
    whole: Any = RawTensor("float32", (9, 2), bytes(range(72)))

    assert received_from_target(verified)[0].outcome == verified
    assert received_from_target(prefilled)[0].outcome == prefilled
    parts = [one.outcome for one in received_from_target(replace(prefilled, features=whole), 32)]
    assert [part.logprobs for part in parts] == [None] * (len(parts) - 1) + [LOGPROBS[0]]


@given(st.integers(1, 9), st.integers(1, 40))
def test_read_features_cross_in_parts(rows: int, max_part_bytes: int) -> None:
    """Parts follow each other without a gap."""
    whole = RawTensor("bfloat16", (rows, 3), bytes(range(6 * rows)))
    parts = [one.outcome for one in received_from_target(FeaturesRead(20, whole), max_part_bytes)]

    assert wire.join_rows([part.features for part in parts]) == whole
    assert parts[-1].begin + len(parts[-1].features) == 20 + rows


def test_the_other_target_answers_cross() -> None:
    """Opened, Released and errors arrive as they were sent."""
    error = received_from_target(ResourceExhaustedError("full", retry_after_ms=9))[0].outcome

    assert received_from_target(Opened(77))[0].outcome == Opened(77)
    assert received_from_target(Released())[0].outcome == Released()
    assert type(error) is ResourceExhaustedError
    assert (error.message, error.retry_after_ms) == ("full", 9)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"verify": target_pb2.VerifyResult(accepted_nodes=[2, 1])},
        {"verify": target_pb2.VerifyResult(accepted_nodes=[0])},
        {"verify": target_pb2.VerifyResult(bonus=-1)},
        {"verify": target_pb2.VerifyResult(features=common_pb2.Tensor(shape=[2, 1]))},
        {
            "verify": target_pb2.VerifyResult(
                features=common_pb2.Tensor(
                    dtype=common_pb2.DTYPE_FLOAT32, shape=[2, 1], data=bytes(8)
                )
            )
        },
        {"prefill": target_pb2.PrefillResult(root=-1)},
        {"prefill": target_pb2.PrefillResult(root_logprobs=target_pb2.TokenLogprobs())},
        *(
            {"verify": target_pb2.VerifyResult(logprobs=[target_pb2.TokenLogprobs(**bad)])}
            for bad in (
                {"token_ids": [1, 2], "logprobs": bytes(4)},
                {"token_ids": [-1], "logprobs": bytes(4)},
                {"token_ids": [1] * 22, "logprobs": bytes(88)},
                {"token_ids": [1], "logprobs": np.float32("nan").tobytes()},
                {"token_ids": [1], "logprobs": np.float32(0.5).tobytes()},
            )
        ),
        {"features": target_pb2.ReadFeaturesResult()},
    ],
)
def test_a_bad_result_harms_its_own_command_alone(parts: dict) -> None:
    """It becomes an error of that command; its neighbours in the frame are read."""
    bad = target_pb2.TargetResult(command_id=1, **parts)
    good = target_pb2.TargetResult(command_id=2, released=target_pb2.TargetReleased())
    replies = target_wire.read_frame(sent(target_wire.result_frame([bad, good])))

    assert isinstance(replies, list)
    assert isinstance(replies[0].outcome, InvalidArgumentError)
    assert replies[1].outcome == Released()


# --- draft ----------------------------------------------------------------------------------------
def received_by_draft(message: draft_pb2.DraftCommand) -> Any:
    """The command as the draft's shell sees it."""
    frame = sent(draft_wire.command_frame([message]))
    command = draft_wire.draft_command(frame.commands.commands[0], SESSION[0], 4096)
    assert (command.command_id, command.session) == (5, SESSION)
    return command.body


@pytest.mark.parametrize("top_k", [0, 1, 32])
@pytest.mark.parametrize("dtype", FLOATS)
def test_extend_crosses_with_the_target_s_bytes(dtype: str, top_k: int) -> None:
    """Raw features from the target are decoded at the draft, and nowhere before."""
    tensor = torch.randn(3, 4).to(DTYPES[dtype])
    raw: Any = wire.raw_from_torch(tensor)
    work = Extend(SESSION, 10, [1, 2, 3], raw, top_k)
    body = received_by_draft(draft_wire.extend_command(5, STAMP, work))

    assert torch.equal(body.work.features, tensor)
    assert replace(body.work, features=raw) == work
    assert (body.stamp, body.num_tokens, body.kind, body.bulk) == (STAMP, 3, "extend", top_k == 0)


def test_a_language_model_draft_gets_tokens_alone() -> None:
    """Without features there is no position shift, and the base says so."""
    work = Extend(SESSION, 0, [4, 5], None, 2)
    message = draft_wire.extend_command(5, STAMP, work)

    assert message.extend.base.committed_length == 2
    assert received_by_draft(message).work == work


@given(st.lists(st.integers(0, 1023), min_size=1, max_size=32, unique=True), st.integers(1, 32))
def test_expand_crosses(rows: list[int], top_k: int) -> None:
    """The frontier arrives in its order."""
    work = Expand(SESSION, rows, top_k)
    body = received_by_draft(draft_wire.expand_command(5, STAMP, work))

    assert body == RunWork(STAMP, work, len(rows), "expand", bulk=False)


@pytest.mark.parametrize("aim", [None, NoiseAim(0, 0.7), NoiseAim(2**64 - 1, 100.0)])
def test_the_other_draft_commands_cross(aim: NoiseAim | None) -> None:
    """Open keeps noise of seed 0 apart from none; Release arrives."""
    request = DraftOpen(512, aim)
    name = SESSION[1]

    assert received_by_draft(draft_wire.open_command(5, name, 4, request)) == OpenSession(
        4, request
    )
    assert received_by_draft(draft_wire.release_command(5, name)) == ReleaseSession()


def test_a_noise_seed_without_temperature_is_no_aim() -> None:
    """A greedy target has no noise, and older controllers send the seed alone."""
    command = draft_wire.open_command(5, SESSION[1], 4, DraftOpen(512))
    command.open.noise_seed = 3
    assert received_by_draft(command) == OpenSession(4, DraftOpen(512))


def received_from_draft(answer: Any) -> Any:
    """The outcome a controller sees."""
    result = draft_wire.draft_result(8, answer, 1.5, 2.5)
    replies = draft_wire.read_frame(sent(draft_wire.result_frame([result])))
    assert isinstance(replies, list)
    assert (replies[0].command_id, replies[0].queue_ms, replies[0].compute_ms) == (8, 1.5, 2.5)
    return replies[0].outcome


@given(st.integers(1, 32), st.integers(1, 32), st.integers(0, 2**32 - 1))
def test_levels_cross_bit_by_bit(rows: int, top_k: int, seed: int) -> None:
    """Scores decide ties: tokens and log-probs survive exactly."""
    random = np.random.default_rng(seed)
    tokens = np.stack([random.choice(50_000, top_k, replace=False) for _ in range(rows)])
    level = Level(tokens, -random.random((rows, top_k), dtype=np.float32))
    back = received_from_draft(level)

    assert back.tokens.dtype == np.int64
    assert back.logprobs.dtype == np.float32
    assert np.array_equal(back.tokens, level.tokens)
    assert np.array_equal(back.logprobs, level.logprobs)


@pytest.mark.parametrize("answer", [Extended(0), Extended(9), Opened(0), Opened(5), Released()])
def test_the_other_draft_answers_cross(answer: Any) -> None:
    """Zeros are answers too."""
    assert received_from_draft(answer) == answer


def test_errors_of_a_draft_cross() -> None:
    """The class is restored by reason."""
    error = received_from_draft(StaleStampError("old", metadata={"last": "1/2/3"}))

    assert type(error) is StaleStampError
    assert error.metadata == {"last": "1/2/3"}


@pytest.mark.parametrize(
    "parts",
    [
        {"num_rows": 0, "tokens": [], "logprobs": b""},
        {"top_k": 0, "tokens": [], "logprobs": b""},
        {"num_rows": 33, "tokens": [1] * 66, "logprobs": bytes(264)},
        {"num_rows": -1},
        {"tokens": [1, 2, 3]},
        {"logprobs": bytes(15)},
        {"tokens": [1, 2, 3, -4]},
        {"tokens": [1, 2, 3, 3]},
        {"logprobs": np.array([0, -1, np.nan, -2], dtype="<f4").tobytes()},
        {"logprobs": np.array([0, -1, -np.inf, -2], dtype="<f4").tobytes()},
    ],
)
def test_a_bad_level_is_refused(parts: dict) -> None:
    """Sizes, token ids and scores are checked before a tree is built of them."""
    whole = {"num_rows": 2, "top_k": 2, "tokens": [1, 2, 3, 4], "logprobs": bytes(16)}
    result = draft_pb2.DraftResult(command_id=1, level=draft_pb2.Level(**{**whole, **parts}))

    assert isinstance(draft_wire.draft_reply(result).outcome, InvalidArgumentError)


def test_what_is_no_result_is_refused() -> None:
    """A result without an answer and a pool without levels are errors of their command."""
    for result in (draft_pb2.DraftResult(), draft_pb2.DraftResult(pool=draft_pb2.Pool())):
        assert isinstance(draft_wire.draft_reply(result).outcome, InvalidArgumentError)
