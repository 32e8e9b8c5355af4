"""DraftService over loopback gRPC: levels, retries, and what a bad command gets."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.workers import PROMPT, Commands, Stream, served_draft, until
from tests.fakes import continuation

from arborist.common.attach import Attach, StreamLane
from arborist.common.command import Opened, Released
from arborist.common.draft_wire import draft_info_from_pb
from arborist.common.traceparent import format_traceparent
from arborist.core.engine import Extended
from arborist.core.errors import (
    ArboristError,
    InvalidArgumentError,
    MismatchError,
    ResourceExhaustedError,
    SessionFailedError,
    StaleStampError,
    UnavailableError,
    UnimplementedError,
    UnknownSessionError,
)
from arborist.core.features import FeatureSpec
from arborist.core.pool import Pool
from arborist.core.tree import DraftTree, Level
from arborist.v1 import common_pb2
from arborist.v1 import draft_pb2 as pb

ROOT = continuation(PROMPT, 1)[0]
COMMITTED = [*PROMPT, ROOT]


async def extended(stream: Stream, session_id: str = "s") -> tuple[Commands, Level]:
    """Opens a session and gives it all committed pairs."""
    commands = Commands(stream, session_id)
    opened, level = await stream.ask(commands.open_draft(), commands.extend(COMMITTED))
    assert isinstance(opened, Opened)
    assert isinstance(level, Level)
    return commands, level


async def test_a_tree_grows_along_the_target_s_tokens() -> None:
    """True features give the true continuation, level after level."""
    async with served_draft() as served:
        stream = await served.stream()
        commands, level = await extended(stream)
        tree = DraftTree(level)
        for step in range(1, 4):
            frontier = tree.frontier(4)
            message = commands.expand(frontier.tolist(), step=step)
            level = (await stream.ask(message))[0]
            tree.grow(frontier, level)
        verified = tree.rerank(8)

        truth = continuation(COMMITTED, 4)
        path, node = [], 0
        for token in truth:
            children = [
                child
                for child, (parent, drafted) in enumerate(
                    zip(verified.parent_indices, verified.tokens, strict=True), start=1
                )
                if parent == node and drafted == token
            ]
            if not children:
                break
            node = children[0]
            path.append(token)
        assert path == truth


async def test_wrong_features_give_another_level() -> None:
    """The level depends on the bytes of the features, not on the tokens alone."""
    async with served_draft() as served:
        stream = await served.stream()
        _, right = await extended(stream)
        other = Commands(stream, "other")
        message = other.extend(COMMITTED)
        message.extend.features.data = bytes(len(message.extend.features.data))
        _, wrong = await stream.ask(other.open_draft(), message)

        assert right.tokens[0, 0] == continuation(COMMITTED, 1)[0]
        assert not np.array_equal(right.tokens, wrong.tokens)


async def test_pairs_come_in_parts_and_a_level_only_when_wanted() -> None:
    """Extend without a level says how many pairs are held; the next one goes on from there."""
    async with served_draft() as served:
        bulk, rounds = await served.stream(lane=StreamLane.BULK), await served.stream()
        commands = Commands(bulk)
        _, first = await bulk.ask(
            commands.open_draft(), commands.extend(COMMITTED[:3], top_k=0, tree_id=0)
        )
        level = (await rounds.ask(Commands(rounds).extend(COMMITTED, held=2)))[0]

        assert first == Extended(2)
        assert level.tokens[0, 0] == continuation(COMMITTED, 1)[0]


async def test_repeating_the_last_level_returns_the_same() -> None:
    """A repeated Expand is answered from memory, a late Extend is ABORTED."""
    async with served_draft() as served:
        stream = await served.stream()
        commands, _ = await extended(stream)
        expand = commands.expand([0, 1])
        first = (await stream.ask(expand))[0]
        forwards = len(served.engine.behaviour.batches)
        again, late = await stream.ask(commands.expand([0, 1]), commands.extend(COMMITTED))

        assert np.array_equal(first.tokens, again.tokens)
        assert np.array_equal(first.logprobs, again.logprobs)
        assert isinstance(late, StaleStampError)
        assert len(served.engine.behaviour.batches) == forwards


async def test_a_pool_comes_with_its_extend_in_one_frame() -> None:
    """Both are answered, level 1 first, and the pool is what Expands give."""
    async with served_draft() as served:
        stream = await served.stream()
        commands, twin = Commands(stream), Commands(stream, "twin")
        await stream.ask(commands.open_draft(), twin.open_draft())
        await stream.send(commands.extend(COMMITTED), commands.expand_tree(depth=3))
        first, grown = await stream.replies(2)
        assert first.command_id < grown.command_id
        level, pool = first.outcome, grown.outcome

        tree = DraftTree((await stream.ask(twin.extend(COMMITTED)))[0])
        for step in (1, 2):
            frontier = tree.frontier(4)
            expand = twin.expand(frontier.tolist(), step=step)
            tree.grow(frontier, (await stream.ask(expand))[0])
        assert isinstance(pool, Pool)
        assert pool.tree(level).rerank(12) == tree.rerank(12)


async def test_repeating_a_pair_returns_the_same() -> None:
    """Both are answered from memory until the next command."""
    async with served_draft() as served:
        stream = await served.stream()
        commands = Commands(stream)
        _, level, pool = await stream.ask(
            commands.open_draft(), commands.extend(COMMITTED), commands.expand_tree()
        )
        forwards = len(served.engine.behaviour.batches)
        again = await stream.ask(commands.extend(COMMITTED), commands.expand_tree())

        assert np.array_equal(level.tokens, again[0].tokens)
        assert again[1].tree(level).rerank(20) == pool.tree(level).rerank(20)
        assert len(served.engine.behaviour.batches) == forwards


async def test_a_tree_whose_extend_failed_fails_too() -> None:
    """Refused on sight or by the engine: the pool of another round is never the answer."""
    async with served_draft() as served:
        stream = await served.stream()
        commands, _ = await extended(stream)
        for tree_id, broken in ((2, "width"), (3, "tokens")):
            message = commands.extend([*COMMITTED, 1], held=5, tree_id=tree_id)
            if broken == "tokens":
                message.extend.ClearField("tokens")  # The wire sees that.
            else:
                message.extend.features.CopyFrom(features(width=7))  # Only the engine sees that.
            outcomes = await stream.ask(message, commands.expand_tree(tree_id=tree_id))
            assert [type(one) for one in outcomes] == [InvalidArgumentError] * 2
        outcomes = await stream.ask(
            commands.extend([*COMMITTED, 1], held=5, tree_id=4), commands.expand_tree(tree_id=4)
        )
        assert [type(one) for one in outcomes] == [Level, Pool]


async def test_one_pair_of_a_session_may_be_in_flight() -> None:
    """What comes behind an ExpandTree before it is answered is RESOURCE_EXHAUSTED."""
    async with served_draft() as served:
        stream = await served.stream()
        commands = Commands(stream)
        await stream.ask(commands.open_draft())
        served.engine.behaviour.gate.clear()
        await stream.send(commands.extend(COMMITTED), commands.expand_tree())
        await until(lambda: served.worker.info.num_queued_rows == 2)
        for more in (commands.expand_tree(step=2), commands.expand([0], step=2)):
            await stream.send(more)
            (refused,) = await stream.replies(1)
            assert isinstance(refused.outcome, ResourceExhaustedError)
        served.engine.behaviour.gate.set()
        level, pool = await stream.replies(2)
        assert isinstance(level.outcome, Level)
        assert isinstance(pool.outcome, Pool)


async def test_every_level_of_a_pool_has_its_span() -> None:
    """Each hangs below the span that the controller named for it, in order and end to end."""
    async with served_draft() as served:
        stream = await served.stream()
        commands = Commands(stream)
        parents = [format_traceparent(0xABC, span_id) for span_id in (5, 6, 7)]
        tree = commands.expand_tree(traceparent=parents[0], level_span_ids=(5, 6, 7))
        await stream.ask(commands.open_draft(), commands.extend(COMMITTED), tree)
        await until(lambda: len(served.recorder.spans) == 3)
        spans = sorted(served.recorder.spans, key=lambda span: span[2])

        assert [(name, parent) for name, parent, *_ in spans] == [
            ("worker.expand", parent) for parent in parents
        ]
        assert [one[4]["rows"] for one in spans] == [4, 4, 4]
        assert [one[3] for one in spans[:-1]] == [one[2] for one in spans[1:]]
        assert ("expand_tree", 1, 4) in served.recorder.forwards


async def test_a_new_epoch_drops_what_the_old_one_held() -> None:
    """After a re-open the pairs begin at 0 again."""
    async with served_draft() as served:
        stream = await served.stream()
        await extended(stream)
        new = Commands(stream, epoch=2)
        _, level = await stream.ask(new.open_draft(), new.extend(COMMITTED))
        stale = (await stream.ask(Commands(stream).expand([0])))[0]

        assert isinstance(level, Level)
        assert isinstance(stale, StaleStampError)


async def test_levels_of_several_sessions_share_a_forward() -> None:
    """Extend and Expand of different sessions that waited together run together."""
    async with served_draft() as served:
        stream = await served.stream()
        sessions = [(await extended(stream, name))[0] for name in "abc"]
        served.engine.behaviour.batches.clear()
        served.engine.behaviour.gate.clear()
        await stream.send(sessions[0].expand([0]))
        await until(lambda: served.engine.behaviour.batches)
        new = Commands(stream, "d")
        await stream.send(
            sessions[1].expand([0]),
            sessions[2].expand([1, 0]),
            new.open_draft(),
            new.extend(COMMITTED),
        )
        await until(lambda: served.worker.info.num_queued_rows == 4)
        served.engine.behaviour.gate.set()
        await stream.replies(5)

        assert served.engine.behaviour.batches == [["a"], ["b", "c", "d"]]


async def test_one_bad_session_never_fails_a_batch() -> None:
    """The others get their levels."""
    async with served_draft() as served:
        stream = await served.stream()
        sessions = [(await extended(stream, name))[0] for name in ("a", "bad")]
        served.engine.behaviour.poison.add("bad")
        good, bad = await stream.ask(*(one.expand([0]) for one in sessions))
        gone = (await stream.ask(sessions[1].expand([0], step=2)))[0]

        assert isinstance(good, Level)
        assert isinstance(bad, SessionFailedError)
        assert isinstance(gone, UnknownSessionError)


async def test_a_lost_controller_s_sessions_are_released_after_the_grace_time() -> None:
    """The draft keeps nothing of who does not come back."""
    async with served_draft(reattach_grace_s=0.05) as served:
        stream = await served.stream()
        await extended(stream)
        await stream.lose()

        await until(lambda: served.worker.info.kv_reserved_tokens == 0)
        assert served.worker.info.num_sessions == 0


async def test_release_is_idempotent() -> None:
    """Both answers are Released, and nothing stays reserved."""
    async with served_draft() as served:
        stream = await served.stream()
        commands, _ = await extended(stream)
        assert served.worker.info.kv_reserved_tokens == 100
        released = await stream.ask(commands.release_draft(), commands.release_draft())

        assert [type(one) for one in released] == [Released, Released]
        assert served.worker.info.kv_reserved_tokens == 0


async def test_kv_is_bounded() -> None:
    """An Open that does not fit is RESOURCE_EXHAUSTED."""
    async with served_draft() as served:
        stream = await served.stream()
        refused = (await stream.ask(Commands(stream).open_draft(max_length=5000)))[0]

        assert isinstance(refused, ResourceExhaustedError)


async def test_another_head_than_expected_is_refused() -> None:
    """The digest of the draft counts; the target's is not the draft's to judge."""
    async with served_draft() as served:
        with pytest.raises(MismatchError):
            await served.raw_stream().attach(Attach("c", StreamLane.ROUND, draft_digest="other"))
        await served.stream(draft_digest="draft-digest", target_digest="anything")


async def test_info_says_which_features_are_wanted() -> None:
    """Spec and width are the engine's."""
    async with served_draft() as served:
        answer = await served.stub().GetInfo(pb.DraftServiceGetInfoRequest())
        info = draft_info_from_pb(answer)

        assert info.feature_spec == FeatureSpec()
        assert info.feature_width == 8
        assert info.info.model.digest == "draft-digest"


async def test_drain_refuses_new_sessions() -> None:
    """Running sessions go on."""
    async with served_draft() as served:
        stream = await served.stream()
        commands, _ = await extended(stream)
        drained = await served.stub().Drain(pb.DraftServiceDrainRequest())
        level, refused = await stream.ask(
            commands.expand([0]), Commands(stream, "new").open_draft()
        )

        assert drained.num_sessions == 1
        assert isinstance(level, Level)
        assert isinstance(refused, UnavailableError)


def message(**parts: Any) -> pb.DraftCommand:
    """A command of session "s", stamped after level 1."""
    stamp = common_pb2.Stamp(epoch=1, tree_id=2)
    return pb.DraftCommand(**{"command_id": 99, "session_id": "s", "stamp": stamp, **parts})


def features(rows: int = 1, width: int = 8, **parts: Any) -> common_pb2.Tensor:
    """Zeros as features of one more pair."""
    whole: dict[str, Any] = {
        "dtype": common_pb2.DTYPE_FLOAT32,
        "shape": [rows, width],
        "data": bytes(4 * rows * width),
    }
    return common_pb2.Tensor(**{**whole, **parts})


def extend(tensor: common_pb2.Tensor | None = None, **parts: Any) -> pb.DraftCommand:
    """An Extend by one more pair."""
    whole: dict[str, Any] = {
        "begin": 5,
        "tokens": [1],
        "features": features() if tensor is None else tensor,
    }
    return message(extend=pb.Extend(**{**whole, **parts}))


NAN = np.full(8, np.nan, dtype="<f4").tobytes()
BFLOAT16_INFINITY = np.full(8, 0x7F80, dtype="<i2").tobytes()
INVALID = {
    "no command": message(),
    "no tokens": extend(tokens=[]),
    "too many tokens": extend(features(33), tokens=[1] * 33),
    "pairs elsewhere": extend(begin=4),
    "negative token": extend(tokens=[-1]),
    "rows and tokens differ": extend(features(2)),
    "one dimension": extend(features(shape=[8])),
    "wrong width": extend(features(width=7)),
    "unknown dtype": extend(features(dtype=99)),
    "no dtype": extend(features(dtype=0)),
    "integers": extend(features(dtype=common_pb2.DTYPE_INT32)),
    "short data": extend(features(data=bytes(31))),
    "long data": extend(features(data=bytes(33))),
    "negative shape": extend(features(shape=[-1, -8])),
    "huge shape": extend(features(shape=[1 << 62, 1 << 62])),
    "NaN": extend(features(data=NAN)),
    "infinity": extend(features(dtype=common_pb2.DTYPE_BFLOAT16, data=BFLOAT16_INFINITY)),
    "level without base": extend(want_level=True, top_k=4),
    "level of another base": extend(
        want_level=True, top_k=4, base=common_pb2.Base(committed_length=6)
    ),
    "level without top_k": extend(want_level=True, base=common_pb2.Base(committed_length=7)),
    "level too wide": extend(want_level=True, top_k=33, base=common_pb2.Base(committed_length=7)),
    "no rows": message(expand=pb.Expand(top_k=4)),
    "too many rows": message(expand=pb.Expand(rows=range(33), top_k=4)),
    "negative row": message(expand=pb.Expand(rows=[-1], top_k=4)),
    "row twice": message(expand=pb.Expand(rows=[1, 1], top_k=4)),
    "row beyond the level": message(expand=pb.Expand(rows=[4], top_k=4)),
    "expand without top_k": message(expand=pb.Expand(rows=[0])),
    "expand too wide": message(expand=pb.Expand(rows=[0], top_k=33)),
    "unknown policy": message(expand_tree=pb.ExpandTree(policy="medusa", depth=4, top_k=4)),
    "policy of another's threshold": message(
        expand_tree=pb.ExpandTree(policy="dynamic_depth", depth=4, top_k=4)
    ),
    "tree without depth": message(expand_tree=pb.ExpandTree(policy="eagle2", top_k=4)),
    "tree too deep": message(expand_tree=pb.ExpandTree(policy="eagle2", depth=17, top_k=4)),
    "tree without top_k": message(expand_tree=pb.ExpandTree(policy="eagle2", depth=4)),
    "tree too wide": message(expand_tree=pb.ExpandTree(policy="eagle2", depth=4, top_k=33)),
    "wide chain": message(expand_tree=pb.ExpandTree(policy="chain", depth=4, top_k=4)),
    "too many spans": message(
        expand_tree=pb.ExpandTree(policy="eagle2", depth=4, top_k=4, level_span_ids=range(1, 17))
    ),
    "tree without its extend": message(
        expand_tree=pb.ExpandTree(policy="eagle2", depth=4, top_k=4)
    ),
    "open at epoch 0": message(open=pb.DraftOpen(max_length=9)),
    "open without length": message(open=pb.DraftOpen(epoch=2)),
    "open with noise too hot": message(
        open=pb.DraftOpen(epoch=2, max_length=9, noise_seed=1, noise_temperature=101)
    ),
}


@pytest.mark.parametrize("name", INVALID)
async def test_a_malformed_command_is_an_invalid_argument(name: str) -> None:
    """It names field and limit, and neither stream nor session is the worse for it."""
    async with served_draft(max_prefill_tokens=32) as served:
        stream = await served.stream()
        commands, _ = await extended(stream)
        outcome = (await stream.ask(INVALID[name]))[0]
        after = (await stream.ask(commands.expand([0], tree_id=3)))[0]

        assert type(outcome) is InvalidArgumentError
        assert set(outcome.metadata) == {"field", "value", "limit"}
        assert isinstance(after, Level)


@pytest.mark.parametrize("name", ["NaN", "infinity"])
async def test_features_that_are_not_finite_never_reach_the_engine(name: str) -> None:
    """They are refused as they come in, by name; the engine relies on that."""
    async with served_draft() as served:
        stream = await served.stream()
        await extended(stream)
        num_batches = len(served.engine.behaviour.batches)
        outcome = (await stream.ask(INVALID[name]))[0]

        assert isinstance(outcome, InvalidArgumentError)
        assert outcome.message == "extend.features = NaN or infinity: must be finite"
        assert len(served.engine.behaviour.batches) == num_batches


@pytest.mark.parametrize(
    "reserved",
    [
        extend(
            want_level=True,
            top_k=4,
            base=common_pb2.Base(speculative=common_pb2.SpeculativeBase(tree_id=1)),
        ),
    ],
)
async def test_reserved_parts_are_unimplemented(reserved: pb.DraftCommand) -> None:
    """What the contract reserves is refused, not ignored."""
    async with served_draft() as served:
        stream = await served.stream()
        await extended(stream)

        assert type((await stream.ask(reserved))[0]) is UnimplementedError


async def test_the_targets_noise_is_taken() -> None:
    """Seed and temperature open a session like any other."""
    noise = {"noise_seed": 7, "noise_temperature": 0.8}
    async with served_draft() as served:
        stream = await served.stream()
        opened = await stream.ask(message(open=pb.DraftOpen(epoch=1, max_length=9, **noise)))

        assert isinstance(opened[0], Opened)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.integers(0, 7),
    shape=st.lists(st.integers(-2, 9), max_size=5),
    data=st.binary(max_size=80),
    tokens=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
    begin=st.integers(-1, 7),
)
def test_no_tensor_whatsoever_harms_the_worker(
    dtype: int, shape: list[int], data: bytes, tokens: list[int], begin: int
) -> None:
    """Drawn bytes are taken or refused by an error of the table, and the session goes on."""

    async def run() -> None:
        async with served_draft() as served:
            stream = await served.stream()
            commands, _ = await extended(stream)
            tensor = common_pb2.Tensor(dtype=dtype, shape=shape, data=data)  # type: ignore[arg-type]
            command = extend(tensor, tokens=tokens, begin=begin)
            outcome = (await stream.ask(command))[0]
            assert isinstance(outcome, (InvalidArgumentError, Extended))
            following = (await stream.ask(commands.extend(COMMITTED, tree_id=3)))[0]
            # Refused, because these pairs are held already: the session is still there.
            assert isinstance(following, ArboristError)
            assert not isinstance(following, UnknownSessionError)

    asyncio.run(run())
