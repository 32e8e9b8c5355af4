"""TargetService over loopback gRPC: what a round, a retry, a lost stream and a bad frame get."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.workers import PROMPT, Commands, Served, Stream, served_target, until
from tests.fakes import FakeTargetEngine, continuation, feature_rows, state_logprobs, state_of

from arborist.common import target_wire
from arborist.common.attach import Attach, StreamLane
from arborist.common.command import Opened, Released
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
from arborist.core.sampling import SamplingParams
from arborist.v1 import common_pb2
from arborist.v1 import target_pb2 as pb

TRACEPARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


def held_features(tokens: list[int], begin: int, end: int) -> bytes:
    """Bytes of the features a target must have for positions [begin, end)."""
    return feature_rows([state_of(tokens[: at + 1]) for at in range(begin, end)]).numpy().tobytes()


async def prefilled(stream: Stream, session_id: str = "s", epoch: int = 1) -> Commands:
    """Opens and prefills a session."""
    commands = Commands(stream, session_id, epoch)
    opened, result = await stream.ask(commands.open_target(), commands.prefill(PROMPT))
    assert isinstance(opened, Opened)
    assert result.root == continuation(PROMPT, 1)[0]
    return commands


async def test_a_round_commits_what_the_model_says() -> None:
    """Accepted path, bonus, features and node tokens are the hash model's own."""
    async with served_target() as served:
        stream = await served.stream()
        commands = await prefilled(stream)
        root, first, second, bonus = continuation(PROMPT, 4)
        wrong = (first + 1) % 64

        result = (
            await stream.ask(
                commands.verify([*PROMPT, root], (wrong, first, second, wrong), (0, 0, 2, 3))
            )
        )[0]

        assert result.accepted_nodes == (2, 3)
        assert result.bonus == bonus
        committed = [*PROMPT, root, first, second]
        assert result.features.data == held_features(committed, 5, 8)
        assert result.node_tokens[0] == first
        assert len(result.node_tokens) == 5


async def test_sampling_of_open_reaches_the_engine() -> None:
    """All 64 bits of the seed and the temperature decide the output."""
    sampling = SamplingParams(temperature=0.7, seed=2**64 - 5)
    async with served_target() as served:
        stream = await served.stream()
        commands = Commands(stream)
        _, result = await stream.ask(
            commands.open_target(temperature=0.7, seed=2**64 - 5), commands.prefill(PROMPT)
        )

        assert result.root == continuation(PROMPT, 1, sampling=sampling)[0]


async def test_processors_of_open_reach_the_engine() -> None:
    """Penalties, the prompt's length and what min_tokens holds back decide the output."""
    sampling = SamplingParams(presence_penalty=0.5, min_tokens=20)
    ends = tuple(continuation(PROMPT, 6, sampling=sampling)[2:5])
    expected = continuation(PROMPT, 12, sampling=sampling, end_token_ids=ends)
    async with served_target() as served:
        stream = await served.stream()
        for name, known in (("fresh", 0), ("rebuilt", 6)):
            commands = Commands(stream, name)
            opened, _ = await stream.ask(
                commands.open_target(
                    presence_penalty=0.5,
                    min_tokens=20,
                    prompt_length=len(PROMPT),
                    end_token_ids=ends,
                ),
                commands.prefill([*PROMPT, *expected[:known]], last=True),
            )
            assert isinstance(opened, Opened)
            for index in range(known, 11):
                committed = [*PROMPT, *expected[: index + 1]]
                verify = commands.verify(committed, round_index=index)
                assert (await stream.ask(verify))[0].bonus == expected[index + 1]

    assert not set(expected) & set(ends)
    assert expected != continuation(PROMPT, 12)


async def test_logprobs_come_when_they_are_asked_for() -> None:
    """One per committed token, the root's with the prefill; nothing is sent unasked."""
    async with served_target() as served:
        stream = await served.stream()
        commands = Commands(stream)
        root, first, second = continuation(PROMPT, 3)
        _, chunk = await stream.ask(
            commands.open_target(), commands.prefill(PROMPT, num_logprobs=2)
        )
        verified = (
            await stream.ask(commands.verify([*PROMPT, root], (first,), (0,), num_logprobs=0))
        )[0]
        silent = (await stream.ask(commands.verify([*PROMPT, root, first, second], round_index=1)))[
            0
        ]

    assert chunk.logprobs == state_logprobs(state_of(PROMPT), root, 2)
    assert verified.logprobs == [
        state_logprobs(state_of([*PROMPT, root]), first, 0),
        state_logprobs(state_of([*PROMPT, root, first]), second, 0),
    ]
    assert silent.logprobs == []


async def test_commands_of_one_frame_keep_their_order() -> None:
    """Open, chunks and verify of a session work in a single frame."""
    async with served_target() as served:
        stream = await served.stream()
        commands = Commands(stream)
        root, bonus = continuation(PROMPT, 2)
        opened, first, last, verified = await stream.ask(
            commands.open_target(),
            commands.prefill(PROMPT[:2], last=False),
            commands.prefill(PROMPT[2:], begin=2),
            commands.verify([*PROMPT, root]),
        )

        assert isinstance(opened, Opened)
        assert first.root is None
        assert last.root == root
        assert verified.bonus == bonus


async def test_release_frees_everything_and_drops_what_is_queued() -> None:
    """A round still waiting when its session is released is answered but not run."""
    async with served_target() as served:
        stream = await served.stream()
        root = continuation(PROMPT, 1)[0]
        session = (await queued_rounds(served, stream, ["a"]))[0]
        await stream.send(session.verify([*PROMPT, root]), session.release_target())
        await until(lambda: served.worker.info.num_sessions == 1)
        served.engine.behaviour.gate.set()
        _, verified, released = sorted(await stream.replies(3), key=lambda one: one.command_id)

        assert isinstance(verified.outcome, UnknownSessionError)
        assert isinstance(released.outcome, Released)
        assert served.engine.behaviour.batches == [["blocker"]]
        assert served.worker.info.kv_reserved_tokens == 116


async def test_repeating_the_last_command_returns_the_same_result() -> None:
    """A repeated Verify changes nothing and is answered from memory."""
    async with served_target() as served:
        stream = await served.stream()
        commands = await prefilled(stream)
        committed = [*PROMPT, continuation(PROMPT, 1)[0]]
        first = (await stream.ask(commands.verify(committed)))[0]
        forwards = len(served.engine.behaviour.batches)

        again = (await stream.ask(commands.verify(committed)))[0]

        assert again == first
        assert len(served.engine.behaviour.batches) == forwards


async def test_repeating_a_command_in_flight_joins_it() -> None:
    """Two askers of one running command both get its one result."""
    async with served_target() as served:
        stream = await served.stream()
        commands = await prefilled(stream)
        committed = [*PROMPT, continuation(PROMPT, 1)[0]]
        forwards = len(served.engine.behaviour.batches)
        served.engine.behaviour.gate.clear()
        await stream.send(commands.verify(committed))
        await stream.send(commands.verify(committed))
        await until(lambda: len(served.engine.behaviour.batches) > forwards)
        served.engine.behaviour.gate.set()

        one, other = await stream.replies(2)

        assert one.outcome == other.outcome
        assert one.command_id != other.command_id
        assert len(served.engine.behaviour.batches) == forwards + 1


async def test_an_older_stamp_is_aborted_and_changes_nothing() -> None:
    """A late prefill is ABORTED, and the round after it works."""
    async with served_target() as served:
        stream = await served.stream()
        commands = await prefilled(stream)
        root, bonus = continuation(PROMPT, 2)
        verify = commands.verify([*PROMPT, root])
        first = (await stream.ask(verify))[0]
        late = (await stream.ask(commands.prefill(PROMPT)))[0]
        following = (await stream.ask(commands.verify([*PROMPT, root, bonus], round_index=1)))[0]

        assert first.bonus == bonus
        assert isinstance(late, StaleStampError)
        assert following.bonus == continuation(PROMPT, 3)[2]


async def test_a_higher_epoch_starts_anew_and_the_old_one_is_over() -> None:
    """Commands of an older incarnation are ABORTED; opening the same epoch again is harmless."""
    async with served_target() as served:
        stream = await served.stream()
        old = await prefilled(stream)
        new = await prefilled(stream, epoch=2)
        committed = [*PROMPT, continuation(PROMPT, 1)[0]]

        stale_open, stale_verify, repeated, verified = await stream.ask(
            old.open_target(), old.verify(committed), new.open_target(), new.verify(committed)
        )

        assert isinstance(stale_open, StaleStampError)
        assert isinstance(stale_verify, StaleStampError)
        assert isinstance(repeated, Opened)
        assert verified.bonus == continuation(PROMPT, 2)[1]
        assert served.worker.info.num_sessions == 1


async def test_unknown_sessions_are_not_found_and_releasing_them_is_no_error() -> None:
    """Release is idempotent; everything else says NOT_FOUND."""
    async with served_target() as served:
        stream = await served.stream()
        commands = Commands(stream, "nobody")
        verify, read, release = await stream.ask(
            commands.verify([1]), commands.read(0, 1), commands.release_target()
        )

        assert isinstance(verify, UnknownSessionError)
        assert isinstance(read, UnknownSessionError)
        assert isinstance(release, Released)


async def test_two_controllers_with_equal_session_ids_share_nothing() -> None:
    """A session id is scoped to its controller."""
    async with served_target() as served:
        one, other = await served.stream("one"), await served.stream("other")
        await prefilled(one)
        commands = Commands(other)
        missing = (await other.ask(commands.verify([1])))[0]
        await prefilled(other)
        await one.ask(Commands(one).release_target())
        root = continuation(PROMPT, 1)[0]
        verified = (await other.ask(commands.verify([*PROMPT, root])))[0]

        assert isinstance(missing, UnknownSessionError)
        assert verified.bonus == continuation(PROMPT, 2)[1]


async def test_both_lanes_share_the_sessions_and_answer_where_asked() -> None:
    """A prompt prefilled on the bulk lane is verified on the round lane."""
    async with served_target() as served:
        rounds = await served.stream()
        bulk = await served.stream(lane=StreamLane.BULK)
        await prefilled(bulk)
        root, bonus = continuation(PROMPT, 2)
        verified = (await rounds.ask(Commands(rounds).verify([*PROMPT, root])))[0]
        read = (await bulk.ask(Commands(bulk).read(1, 6)))[0]

        assert verified.bonus == bonus
        assert read.begin == 1
        assert read.features.data == held_features([*PROMPT, root], 1, 6)


async def test_long_answers_come_in_parts() -> None:
    """Prefilled and read features are split, `more` on all parts but the last."""
    async with served_target(max_part_bytes=96, max_frame_bytes=128) as served:
        stream = await served.stream(lane=StreamLane.BULK)
        commands = Commands(stream)
        prompt = list(range(10))
        await stream.send(commands.open_target(), commands.prefill(prompt))
        opened, *parts = await stream.replies(5)
        await stream.send(commands.read(0, 7))
        read = await stream.replies(3)

        assert isinstance(opened.outcome, Opened)
        assert [one.more for one in parts] == [True, True, True, False]
        assert [one.outcome.begin for one in parts] == [0, 3, 6, 9]
        assert [one.outcome.root for one in parts[:3]] == [None] * 3
        assert parts[3].outcome.root == continuation(prompt, 1)[0]
        joined = b"".join(one.outcome.features.data for one in parts)
        assert joined == held_features(prompt, 0, 10)
        assert [one.more for one in read] == [True, True, False]
        assert b"".join(one.outcome.features.data for one in read) == held_features(prompt, 0, 7)
        assert all(len(frame.results.results) == 1 for frame in stream.frames[1:])


async def test_features_keep_their_dtype() -> None:
    """A draft that asked for bfloat16 gets bfloat16."""
    async with served_target() as served:
        stream = await served.stream()
        commands = Commands(stream)
        _, result = await stream.ask(
            commands.open_target(dtype="bfloat16"), commands.prefill(PROMPT)
        )

        assert result.features.dtype == "bfloat16"
        assert result.features.shape == (5, 8)


# --- batches --------------------------------------------------------------------------------------
async def queued_rounds(served: Served, stream: Stream, names: list[str]) -> list[Commands]:
    """Prefills sessions, then blocks a forward so that the next ones queue up."""
    sessions = [await prefilled(stream, name) for name in ("blocker", *names)]
    served.engine.behaviour.batches.clear()
    served.engine.behaviour.gate.clear()
    root = continuation(PROMPT, 1)[0]
    await stream.send(sessions[0].verify([*PROMPT, root]))
    await until(lambda: served.engine.behaviour.batches)
    return sessions[1:]


async def test_everything_queued_shares_the_next_forward() -> None:
    """Commands of two streams that waited together run together, oldest first."""
    async with served_target() as served:
        one, other = await served.stream("one"), await served.stream("other")
        root = continuation(PROMPT, 1)[0]
        theirs = await prefilled(other, "theirs")
        ours = await queued_rounds(served, one, ["a", "b"])
        await one.send(*(session.verify([*PROMPT, root]) for session in ours))
        await until(lambda: served.worker.info.num_queued_rows == 3)
        await other.send(theirs.verify([*PROMPT, root]))
        await until(lambda: served.worker.info.num_queued_rows == 4)
        served.engine.behaviour.gate.set()
        await one.replies(3)
        await other.replies(1)

        assert served.engine.behaviour.batches == [["blocker"], ["a", "b", "theirs"]]
        assert served.recorder.forwards[-1] == ("verify", 3, 3)


async def test_a_forward_takes_at_most_max_rows() -> None:
    """What does not fit waits for the next forward."""
    async with served_target(max_rows=2) as served:
        stream = await served.stream()
        root = continuation(PROMPT, 1)[0]
        sessions = await queued_rounds(served, stream, ["a", "b", "c"])
        await stream.send(*(session.verify([*PROMPT, root]) for session in sessions))
        await until(lambda: served.worker.info.num_queued_rows == 4)
        served.engine.behaviour.gate.set()
        await stream.replies(4)

        assert served.engine.behaviour.batches == [["blocker"], ["a", "b"], ["c"]]


async def test_one_bad_session_never_fails_a_batch() -> None:
    """The culprit gets SESSION_FAILED with an incident and is gone; the others get results."""
    async with served_target() as served:
        stream = await served.stream()
        root, bonus = continuation(PROMPT, 2)
        sessions = await queued_rounds(served, stream, ["a", "bad", "c"])
        served.engine.behaviour.poison.add("bad")
        await stream.send(*(session.verify([*PROMPT, root]) for session in sessions))
        await until(lambda: served.worker.info.num_queued_rows == 4)
        served.engine.behaviour.gate.set()
        replies = sorted(await stream.replies(4), key=lambda one: one.command_id)

        outcomes = [one.outcome for one in replies][1:]
        assert [outcomes[0].bonus, outcomes[2].bonus] == [bonus, bonus]
        assert isinstance(outcomes[1], SessionFailedError)
        assert set(outcomes[1].metadata) == {"incident"}
        for secret in ("secret", "0x", "/"):
            assert secret not in outcomes[1].message
        again = (await stream.ask(sessions[1].verify([*PROMPT, root], round_index=1)))[0]
        assert isinstance(again, UnknownSessionError)
        assert served.worker.info.num_sessions == 3
        assert "SESSION_FAILED" in served.recorder.errors


async def test_an_open_that_breaks_leaves_nothing() -> None:
    """Neither session nor KV stays, and a later Open of the same epoch works."""
    async with served_target() as served:
        stream = await served.stream()
        commands = Commands(stream)
        served.engine.behaviour.failing_open = True
        failed = (await stream.ask(commands.open_target()))[0]
        served.engine.behaviour.failing_open = False
        opened = (await stream.ask(commands.open_target()))[0]

        assert isinstance(failed, SessionFailedError)
        assert "shadow" not in failed.message
        assert isinstance(opened, Opened)


async def test_a_schema_is_compiled_before_its_open_and_beside_the_others() -> None:
    """While one is compiled, other sessions are opened and run; then its Open is answered."""
    async with served_target() as served:
        stream = await served.stream()
        waiting, other = Commands(stream, "waiting"), Commands(stream, "other")
        served.engine.behaviour.gate.clear()
        await stream.send(waiting.open_target(json_schema="{}"))
        opened = (await stream.ask(other.open_target()))[0]
        assert isinstance(opened, Opened)
        assert served.engine.num_opened == 1

        served.engine.behaviour.gate.set()
        reply = (await stream.replies(1))[0]
        assert isinstance(reply.outcome, Opened)
        assert served.engine.num_opened == 2


@pytest.mark.parametrize(
    ("schema", "error"), [("refused", InvalidArgumentError), ("broken", SessionFailedError)]
)
async def test_a_schema_that_does_not_compile_opens_nothing(
    schema: str, error: type[ArboristError]
) -> None:
    """The Open gets the reason, or an incident; a later one of the same epoch works."""
    async with served_target() as served:
        stream = await served.stream()
        commands = Commands(stream)
        failed: Any = (await stream.ask(commands.open_target(json_schema=schema)))[0]
        assert isinstance(failed, error)
        assert "shadow" not in failed.message
        assert served.engine.num_opened == served.worker.info.num_sessions == 0
        assert isinstance((await stream.ask(commands.open_target()))[0], Opened)


async def test_releasing_while_a_schema_compiles_leaves_nothing() -> None:
    """The Open finds its session gone."""
    async with served_target() as served:
        stream = await served.stream()
        commands = Commands(stream)
        served.engine.behaviour.gate.clear()
        await stream.send(commands.open_target(json_schema="{}"))
        await until(lambda: served.worker.info.num_sessions == 1)
        await stream.send(target_wire.release_command(stream.next_id(), commands.session_id))
        await stream.replies(1)
        served.engine.behaviour.gate.set()

        outcome = (await stream.replies(1))[0].outcome
        assert type(outcome) is UnknownSessionError
        assert served.engine.num_opened == served.worker.info.num_sessions == 0


# --- bounds ---------------------------------------------------------------------------------------
async def test_one_round_command_and_two_chunks_are_in_flight_per_session() -> None:
    """More is RESOURCE_EXHAUSTED with advice, and leaves the stamp unused."""
    async with served_target() as served:
        stream = await served.stream()
        commands = await prefilled(stream)
        served.engine.behaviour.gate.clear()
        committed = [*PROMPT, *continuation(PROMPT, 1)]
        forwards = len(served.engine.behaviour.batches)
        await stream.send(commands.verify(committed))
        await until(lambda: len(served.engine.behaviour.batches) > forwards)
        over = (await stream.ask(commands.verify(committed, round_index=1)))[0]
        other = Commands(stream, "other")
        await stream.send(
            other.open_target(),
            other.prefill([1], last=False),
            other.prefill([2], begin=1, last=False),
            other.prefill([3], begin=2),
        )
        third = (await stream.replies(1))[0].outcome
        served.engine.behaviour.gate.set()
        await stream.replies(4)
        retried = (await stream.ask(other.prefill([3], begin=2)))[0]

        assert isinstance(over, ResourceExhaustedError)
        assert over.retry_after_ms > 0
        assert isinstance(third, ResourceExhaustedError)
        assert retried.root == continuation([1, 2, 3], 1)[0]


async def test_sessions_and_kv_are_bounded() -> None:
    """Over max_sessions and over the KV are RESOURCE_EXHAUSTED with advice; both heal."""
    engine = FakeTargetEngine(kv_capacity_tokens=300)
    async with served_target(engine, max_sessions=2) as served:
        stream = await served.stream()
        a, b, c = (Commands(stream, name) for name in "abc")
        outcomes = await stream.ask(
            a.open_target(), b.open_target(max_length=200), c.open_target(max_length=20)
        )
        # c was refused while b, which did not fit, still counted.
        again = (await stream.ask(c.open_target(max_length=20)))[0]
        third = (await stream.ask(b.open_target(max_length=20)))[0]

        assert isinstance(outcomes[0], Opened)
        assert isinstance(outcomes[1], ResourceExhaustedError)
        assert outcomes[1].retry_after_ms == 250
        assert isinstance(outcomes[2], ResourceExhaustedError)
        assert isinstance(again, Opened)
        assert isinstance(third, ResourceExhaustedError)
        assert third.metadata["limit"] == "2"


async def test_repeats_and_the_whole_queue_are_bounded() -> None:
    """Neither a flood of repetitions nor one of commands grows without end."""
    async with served_target(max_waiters=2, max_queued_commands=3) as served:
        stream = await served.stream()
        sessions = [await prefilled(stream, name) for name in "abcd"]
        served.engine.behaviour.gate.clear()
        committed = [*PROMPT, *continuation(PROMPT, 1)]
        await stream.send(*(sessions[0].verify(committed) for _ in range(3)))
        repeated = (await stream.replies(1))[0].outcome
        await stream.send(*(one.verify(committed) for one in sessions[1:]))
        flooded = (await stream.replies(1))[0].outcome
        served.engine.behaviour.gate.set()
        answered = await stream.replies(4)

        assert isinstance(repeated, ResourceExhaustedError)
        assert isinstance(flooded, ResourceExhaustedError)
        assert all(one.outcome.bonus >= 0 for one in answered)


# --- streams --------------------------------------------------------------------------------------
async def test_within_the_grace_time_a_controller_comes_back_and_repeats() -> None:
    """A command whose answer was lost with the stream is answered on the next one."""
    async with served_target(reattach_grace_s=30.0) as served:
        stream = await served.stream()
        commands = await prefilled(stream)
        served.engine.behaviour.gate.clear()
        root, bonus = continuation(PROMPT, 2)
        await stream.send(commands.verify([*PROMPT, root]))
        await until(lambda: served.worker.info.num_queued_rows == 1)
        await stream.lose()
        served.engine.behaviour.gate.set()
        again = await served.stream()
        result = (await again.ask(Commands(again).verify([*PROMPT, root])))[0]

        assert result.bonus == bonus
        assert served.engine.num_opened == 1


async def test_after_the_grace_time_sessions_are_released() -> None:
    """Nothing of a lost controller stays, and another controller's sessions do."""
    async with served_target(reattach_grace_s=0.05) as served:
        lost, kept = await served.stream("lost"), await served.stream("kept")
        await prefilled(lost)
        await prefilled(kept)
        await lost.lose()
        await until(lambda: served.worker.info.num_sessions == 1)
        await until(lambda: served.recorder.kv_reserved_tokens == 116)
        back = await served.stream("lost")
        missing = (await back.ask(Commands(back).verify([1])))[0]
        root, bonus = continuation(PROMPT, 2)
        verified = (await kept.ask(Commands(kept).verify([*PROMPT, root])))[0]

        assert isinstance(missing, UnknownSessionError)
        assert verified.bonus == bonus


async def test_one_lost_lane_is_no_lost_controller() -> None:
    """While the bulk lane stands, no grace time runs."""
    async with served_target(reattach_grace_s=0.01) as served:
        rounds = await served.stream()
        bulk = await served.stream(lane=StreamLane.BULK)
        await prefilled(bulk)
        await rounds.lose()
        await asyncio.sleep(0.1)

        root, bonus = continuation(PROMPT, 2)
        verified = (await bulk.ask(Commands(bulk).verify([*PROMPT, root])))[0]
        assert verified.bonus == bonus


async def test_a_new_stream_takes_over_its_lane() -> None:
    """A half-open stream is ended with ABORTED when its controller attaches again."""
    async with served_target() as served:
        older = await served.stream()
        await prefilled(older)
        newer = await served.stream()
        ended = await older.end()
        root, bonus = continuation(PROMPT, 2)
        verified = (await newer.ask(Commands(newer).verify([*PROMPT, root])))[0]

        assert isinstance(ended, StaleStampError)
        assert verified.bonus == bonus


async def test_a_half_closed_stream_ends_well() -> None:
    """A controller that says goodbye gets OK."""
    async with served_target() as served:
        stream = await served.stream()
        await stream.call.done_writing()

        assert (await stream.call.code()).name == "OK"


async def test_both_lanes_answer_with_the_worker_s_identity() -> None:
    """Attached and GetInfo name the same process."""
    async with served_target() as served:
        attached = await served.raw_stream().attach(Attach("c", StreamLane.BULK))
        info = await served.stub().GetInfo(pb.TargetServiceGetInfoRequest())

        assert attached.worker_id == info.info.worker_id == served.worker.worker_id
        assert len(attached.worker_id) == 32


@pytest.mark.parametrize(
    ("attach", "error"),
    [
        (Attach("c", StreamLane.ROUND, protocol_version=2), MismatchError),
        (Attach("c", StreamLane.ROUND, protocol_version=0), MismatchError),
        (Attach("c", StreamLane.ROUND, target_digest="another"), MismatchError),
        (Attach("", StreamLane.ROUND), InvalidArgumentError),
        (Attach("c" * 65, StreamLane.ROUND), InvalidArgumentError),
    ],
)
async def test_a_controller_that_does_not_fit_is_refused(attach: Attach, error: type) -> None:
    """Protocol, digest and id are compared before anything is taken."""
    async with served_target() as served:
        with pytest.raises(error):
            await served.raw_stream().attach(attach)

        assert (await served.stream(target_digest="target-digest")) is not None


async def test_controllers_are_bounded() -> None:
    """One more than max_controllers is RESOURCE_EXHAUSTED with advice."""
    async with served_target(max_controllers=1) as served:
        await served.stream("one")
        with pytest.raises(ResourceExhaustedError) as refused:
            await served.stream("two")

        assert refused.value.retry_after_ms > 0


@pytest.mark.parametrize(
    "frame",
    [
        pb.TargetServiceConnectRequest(),
        pb.TargetServiceConnectRequest(commands=pb.TargetCommands()),
        pb.TargetServiceConnectRequest(attach=common_pb2.Attach(protocol_version=1)),
        pb.TargetServiceConnectRequest(
            attach=common_pb2.Attach(protocol_version=1, controller_id="c")
        ),
    ],
)
async def test_a_stream_begins_with_a_whole_attach(frame: Any) -> None:
    """Anything else ends it with INVALID_ARGUMENT."""
    async with served_target() as served:
        stream = served.raw_stream()
        await stream.call.write(frame)

        assert isinstance(await stream.end(), InvalidArgumentError)


@pytest.mark.parametrize("count", [0, 257])
async def test_a_frame_has_1_to_256_commands(count: int) -> None:
    """An empty or overlong frame ends the stream."""
    async with served_target() as served:
        stream = await served.stream()
        commands = Commands(stream)
        await stream.send(*(commands.release_target() for _ in range(count)))

        assert isinstance(await stream.end(), InvalidArgumentError)


async def test_a_second_attach_ends_the_stream() -> None:
    """Attach comes first and only there."""
    async with served_target() as served:
        stream = await served.stream()
        await stream.call.write(target_wire.attach_frame(Attach("c", StreamLane.ROUND)))

        assert isinstance(await stream.end(), InvalidArgumentError)


async def test_a_silent_stream_is_ended() -> None:
    """Who does not attach in time holds nothing open."""
    async with served_target(attach_timeout_s=0.05) as served:
        stream = served.raw_stream()
        await stream.call.wait_for_connection()

        assert (await stream.end()).reason == "DEADLINE_EXCEEDED"


async def test_a_reader_that_does_not_read_is_not_read_either() -> None:
    """Unsent results are bounded; when the reader goes on, every command is answered."""
    engine = FakeTargetEngine()
    async with served_target(engine, max_outbox_bytes=1, max_frame_bytes=1) as served:
        stream = await served.stream()
        commands = await prefilled(stream)
        for _ in range(50):
            await stream.send(*(commands.read(0, 5) for _ in range(1)))
        replies = await stream.replies(50)

        assert len(replies) == 50


# --- malformed commands ---------------------------------------------------------------------------
def message(**parts: Any) -> pb.TargetCommand:
    """A command of session "s", stamped for a first round unless said otherwise."""
    stamp = common_pb2.Stamp(epoch=1, tree_id=1)
    return pb.TargetCommand(**{"command_id": 99, "session_id": "s", "stamp": stamp, **parts})


BASE = common_pb2.Base(committed_length=6)
VERIFY: dict[str, Any] = {"base": BASE, "root": 1}
INVALID = {
    "no command": message(),
    "no session id": message(session_id="", verify=pb.Verify(**VERIFY)),
    "long session id": message(session_id="s" * 65, verify=pb.Verify(**VERIFY)),
    "no stamp": message(stamp=None, verify=pb.Verify(**VERIFY)),
    "negative stamp": message(
        stamp=common_pb2.Stamp(epoch=1, tree_id=-1), verify=pb.Verify(**VERIFY)
    ),
    "no base": message(verify=pb.Verify(root=1)),
    "wrong base": message(verify=pb.Verify(base=common_pb2.Base(committed_length=9), root=1)),
    "root out of vocabulary": message(verify=pb.Verify(base=BASE, root=64)),
    "negative root": message(verify=pb.Verify(base=BASE, root=-1)),
    "token out of vocabulary": message(verify=pb.Verify(**VERIFY, tokens=[64], parent_indices=[0])),
    "too few parents": message(verify=pb.Verify(**VERIFY, tokens=[1, 2], parent_indices=[0])),
    "parent after child": message(verify=pb.Verify(**VERIFY, tokens=[1, 2], parent_indices=[0, 2])),
    "negative parent": message(verify=pb.Verify(**VERIFY, tokens=[1], parent_indices=[-1])),
    "equal siblings": message(verify=pb.Verify(**VERIFY, tokens=[1, 1], parent_indices=[0, 0])),
    "over the session's tree": message(
        verify=pb.Verify(**VERIFY, tokens=range(17), parent_indices=[0] * 17)
    ),
    "over any tree": message(
        verify=pb.Verify(**VERIFY, tokens=[1] * 257, parent_indices=[0] * 257)
    ),
    "too many log-probs": message(verify=pb.Verify(**VERIFY, num_logprobs=21)),
    "negative log-probs": message(verify=pb.Verify(**VERIFY, num_logprobs=-1, want_logprobs=True)),
    "too many log-probs of a root": message(
        prefill=pb.Prefill(begin=5, tokens=[1], num_logprobs=21, want_logprobs=True)
    ),
    "prompt over max_length": message(open=pb.TargetOpen(epoch=2, max_length=9, prompt_length=10)),
    "negative prompt": message(open=pb.TargetOpen(epoch=2, max_length=9, prompt_length=-1)),
    "no schema": message(open=pb.TargetOpen(epoch=2, max_length=9, grammar=common_pb2.Grammar())),
    "schema too long": message(
        open=pb.TargetOpen(
            epoch=2, max_length=9, grammar=common_pb2.Grammar(json_schema=" " * 65_537)
        )
    ),
    "too many end tokens": message(
        open=pb.TargetOpen(epoch=2, max_length=9, end_token_ids=[1] * 257)
    ),
    "negative end token": message(open=pb.TargetOpen(epoch=2, max_length=9, end_token_ids=[-1])),
    "penalty over 2": message(
        open=pb.TargetOpen(
            epoch=2, max_length=9, sampling=common_pb2.SamplingParams(frequency_penalty=2.5)
        )
    ),
    "empty chunk": message(prefill=pb.Prefill(begin=5)),
    "overlong chunk": message(prefill=pb.Prefill(begin=5, tokens=[1] * 33)),
    "chunk elsewhere": message(prefill=pb.Prefill(begin=4, tokens=[1])),
    "negative token": message(prefill=pb.Prefill(begin=5, tokens=[-1])),
    "empty read": message(read_features=pb.ReadFeatures(begin=2, end=2)),
    "read past the end": message(read_features=pb.ReadFeatures(begin=2, end=6)),
    "negative read": message(read_features=pb.ReadFeatures(begin=-1, end=2)),
    "open at epoch 0": message(open=pb.TargetOpen(max_length=9)),
    "open without length": message(open=pb.TargetOpen(epoch=2)),
    "open over the context": message(session_id="t", open=pb.TargetOpen(epoch=2, max_length=513)),
    "open with a large tree": message(
        open=pb.TargetOpen(epoch=2, max_length=9, max_draft_tokens=257)
    ),
    "open without a feature source": message(
        open=pb.TargetOpen(epoch=2, max_length=9, feature_spec=common_pb2.FeatureSpec())
    ),
    "open with unknown layers": message(
        session_id="t",
        open=pb.TargetOpen(
            epoch=2,
            max_length=9,
            feature_spec=common_pb2.FeatureSpec(layers=common_pb2.LayerFeatures(layer_ids=[0, 2])),
        ),
    ),
    "negative temperature": message(
        open=pb.TargetOpen(
            epoch=2, max_length=9, sampling=common_pb2.SamplingParams(temperature=-1)
        )
    ),
    "temperature not a number": message(
        open=pb.TargetOpen(
            epoch=2, max_length=9, sampling=common_pb2.SamplingParams(temperature=float("nan"))
        )
    ),
    "top_p over 1": message(
        open=pb.TargetOpen(epoch=2, max_length=9, sampling=common_pb2.SamplingParams(top_p=1.1))
    ),
}


@pytest.mark.parametrize("name", INVALID)
async def test_a_malformed_command_is_an_invalid_argument(name: str) -> None:
    """It names field and limit, and neither stream nor session is the worse for it."""
    async with served_target(max_prefill_tokens=32) as served:
        stream = await served.stream()
        commands = await prefilled(stream)
        outcome = (await stream.ask(INVALID[name]))[0]
        committed = [*PROMPT, *continuation(PROMPT, 1)]
        after = (await stream.ask(commands.verify(committed, round_index=1)))[0]

        assert type(outcome) is InvalidArgumentError
        assert set(outcome.metadata) == {"field", "value", "limit"}
        assert after.bonus == continuation(PROMPT, 2)[1]


RESERVED = {
    "speculative base": message(
        verify=pb.Verify(base=common_pb2.Base(speculative=common_pb2.SpeculativeBase()), root=1)
    ),
}


@pytest.mark.parametrize("name", RESERVED)
async def test_reserved_parts_are_unimplemented(name: str) -> None:
    """What the contract reserves is refused, not ignored."""
    async with served_target() as served:
        stream = await served.stream()
        await prefilled(stream)

        outcome = (await stream.ask(RESERVED[name]))[0]
        assert type(outcome) is UnimplementedError


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(0, 63), max_size=20),
    parents=st.lists(st.integers(-5, 20), max_size=20),
    committed_length=st.integers(-2, 9),
    root=st.integers(-2, 70),
)
def test_no_tree_whatsoever_harms_the_worker(
    tokens: list[int], parents: list[int], committed_length: int, root: int
) -> None:
    """Every drawn tree is verified or refused by INVALID_ARGUMENT, and the session goes on."""

    async def run() -> None:
        async with served_target() as served:
            stream = await served.stream()
            commands = await prefilled(stream)
            verify = pb.Verify(
                base=common_pb2.Base(committed_length=committed_length),
                root=root,
                tokens=tokens,
                parent_indices=parents,
            )
            outcome = (await stream.ask(message(verify=verify)))[0]
            if isinstance(outcome, InvalidArgumentError):
                committed = [*PROMPT, *continuation(PROMPT, 1)]
                outcome = (await stream.ask(commands.verify(committed, round_index=1)))[0]
                assert outcome.bonus == continuation(PROMPT, 2)[1]
            else:
                path = [tokens[node - 1] for node in outcome.accepted_nodes]
                expected = continuation([*PROMPT, root], len(path) + 1)
                assert [*path, outcome.bonus] == expected

    asyncio.run(run())


# --- the rest of the service ----------------------------------------------------------------------
async def test_drain_refuses_new_sessions_and_keeps_running_ones() -> None:
    """Opening is UNAVAILABLE; rounds, repeats of an Open and releases go on."""
    async with served_target() as served:
        stream = await served.stream()
        commands = await prefilled(stream)
        drained = await served.stub().Drain(pb.TargetServiceDrainRequest())
        root, bonus = continuation(PROMPT, 2)
        new, repeated, verified = await stream.ask(
            Commands(stream, "new").open_target(),
            commands.open_target(),
            commands.verify([*PROMPT, root]),
        )
        info = await served.stub().GetInfo(pb.TargetServiceGetInfoRequest())

        assert drained.num_sessions == 1
        assert isinstance(new, UnavailableError)
        assert isinstance(repeated, Opened)
        assert verified.bonus == bonus
        assert info.info.draining


async def test_info_says_what_is_held_and_how_full_it_is() -> None:
    """Model, capacity, reservations and sessions are the engine's and the shell's."""
    async with served_target() as served:
        stream = await served.stream()
        await prefilled(stream)
        info = (await served.stub().GetInfo(pb.TargetServiceGetInfoRequest())).info

        assert (info.model.name, info.model.digest) == ("hash", "target-digest")
        assert info.model.vocab_size == 64
        assert info.kv_capacity_tokens == 4096
        assert info.kv_reserved_tokens == 116
        assert info.num_sessions == 1
        assert info.num_queued_rows == 0
        assert info.version == "0.0-test"


async def test_results_carry_times_and_spans_carry_the_caller_s_trace() -> None:
    """queue_ms and compute_ms are in the result, and in a span under the command's traceparent."""
    async with served_target() as served:
        stream = await served.stream()
        commands = await prefilled(stream)
        served.engine.behaviour.delay_s = 0.01
        root = continuation(PROMPT, 1)[0]
        await stream.send(commands.verify([*PROMPT, root], traceparent=TRACEPARENT))
        reply = (await stream.replies(1))[0]
        await until(lambda: served.recorder.spans)

        assert reply.compute_ms >= 10.0
        assert reply.queue_ms >= 0.0
        name, traceparent, start_ns, end_ns, attributes = served.recorder.spans[0]
        assert (name, traceparent) == ("worker.verify", TRACEPARENT)
        assert attributes["rows"] == 1
        assert attributes["compute_ms"] == reply.compute_ms
        assert attributes["queue_ms"] == reply.queue_ms
        assert end_ns - start_ns >= 10_000_000
        assert len(served.recorder.spans) == 1


async def test_stopping_ends_streams_with_unavailable() -> None:
    """A controller whose worker stops is told so."""
    async with served_target() as served:
        stream = await served.stream()
        await served.worker.stop()

        assert isinstance(await stream.end(), UnavailableError)


async def test_a_frame_over_the_size_limit_ends_the_stream_alone() -> None:
    """The worker lives on for the others."""
    async with served_target() as served:
        huge = common_pb2.Attach(controller_id="c" * (17 << 20))
        stub = served.stub_type(served.channel(max_message_bytes=32 << 20))
        stream = Stream(stub.Connect(), served.wire)
        await stream.call.write(pb.TargetServiceConnectRequest(attach=huge))

        assert isinstance(await stream.end(), ResourceExhaustedError)
        await served.stream()
