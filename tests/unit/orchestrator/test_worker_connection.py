"""Streams to a worker: frames, deadlines, losses, releases."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from tests.unit.orchestrator.scripted_worker import ScriptedTarget, opened, serving

from arborist.common import target_wire
from arborist.common.attach import StreamLane
from arborist.common.command import Opened, Released
from arborist.core.engine import PrefillResult, TargetOpen, VerifyResult
from arborist.core.errors import (
    ArboristError,
    DeadlineError,
    InvalidArgumentError,
    ResourceExhaustedError,
    SessionFailedError,
    StaleStampError,
    UnavailableError,
    UnknownSessionError,
)
from arborist.core.logprobs import TokenLogprobs
from arborist.core.sampling import SamplingParams
from arborist.core.stamp import Stamp
from arborist.core.tensor import RawTensor
from arborist.core.tree import VerifyTree
from arborist.orchestrator.grpc_target_link import GrpcTargetLink, target_protocol
from arborist.orchestrator.worker_connection import ConnectionSettings, WorkerConnection
from arborist.v1 import target_pb2 as pb

REQUEST = TargetOpen(SamplingParams(), None, 64, 8)
STAMP = Stamp(1, 1, 0)
TREE = VerifyTree([4, 5, 6], [0, 1, 0], [], [])
# Deadlines are final, except where a test is about patience.
SETTINGS = ConnectionSettings(
    connect_timeout_s=5.0, backoff_first_s=0.02, refresh_s=0.1, max_extensions=0
)


async def until(condition, timeout_s=10.0):
    """Waits for something that happens in the background."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - looks at what other tasks do
            await asyncio.sleep(0.005)


@asynccontextmanager
async def connected(
    servicer: ScriptedTarget, settings: ConnectionSettings = SETTINGS
) -> AsyncIterator[GrpcTargetLink]:
    """A link to a scripted worker, attached on both lanes."""
    async with serving(servicer) as address:
        connection = WorkerConnection(target_protocol(), address, "c", settings, lambda: None)
        connection.start()
        try:
            await until(lambda: connection.attached)
            yield GrpcTargetLink(connection)
        finally:
            await connection.aclose()


def features(rows: int) -> RawTensor:
    """Feature rows of width 4."""
    return RawTensor("float32", (rows, 4), np.ones((rows, 4), "<f4").tobytes())


OWN = TokenLogprobs(9, -0.5)
TOP = TokenLogprobs(9, -0.5, ((4, -0.25),))
STRANGE = TokenLogprobs(9, -0.5, ((64, -0.25),))


def results(command: pb.TargetCommand, answer: object) -> list[pb.TargetResult]:
    """Messages of an answer, in parts of two rows."""
    return target_wire.target_results(command.command_id, answer, 0.5, 1.5, 32)


def verify(link: GrpcTargetLink, **more):
    """Asks for TREE to be verified."""
    arguments = {
        "want_features": True,
        "want_node_tokens": False,
        "num_logprobs": None,
        "traceparent": "",
        "deadline_s": 5.0,
        **more,
    }
    return link.verify("s", STAMP, 10, 3, TREE, **arguments)


async def test_commands_of_one_tick_share_a_frame():
    """What sessions ask in one tick of the loop crosses the wire once, lane by lane."""
    servicer = ScriptedTarget()
    async with connected(servicer) as link:
        opens = [link.open(f"s{number}", 1, REQUEST, 5.0) for number in range(20)]
        await asyncio.gather(*opens)
    frames = servicer.frames[StreamLane.ROUND]
    assert [len(frame) for frame in frames] == [20]
    assert len({command.command_id for command in frames[0]}) == 20


async def test_lanes_have_connections_of_their_own():
    """A long prompt on the bulk lane cannot hold up a round: the peers differ."""
    servicer = ScriptedTarget()
    async with connected(servicer):
        assert len(set(servicer.peers.values())) == 2


async def test_a_late_result_is_dropped_and_counted():
    """A deadline ends the wait; the result that comes after it reaches nobody."""
    release = asyncio.Event()

    async def answer(command):
        if command.session_id == "slow":
            await release.wait()
        return [opened(command)]

    servicer = ScriptedTarget(answer)
    async with connected(servicer) as link:
        with pytest.raises(DeadlineError, match="50 ms"):
            await link.open("slow", 1, REQUEST, 0.05)
        release.set()
        await until(lambda: link.connection.num_late == 1)
        await link.open("next", 1, REQUEST, 5.0)
        assert link.connection.usable


async def test_a_worker_that_says_nothing_is_avoided_until_it_speaks():
    """A frozen worker misses a deadline and its GetInfo: new sessions go elsewhere meanwhile."""
    release = asyncio.Event()

    async def answer(command):
        await release.wait()
        return [opened(command)]

    servicer = ScriptedTarget(answer)
    settings = ConnectionSettings(backoff_first_s=0.02, refresh_s=30.0, probe_timeout_s=0.05)
    async with connected(servicer, settings) as link:
        servicer.silent_info = True
        with pytest.raises(DeadlineError, match="50 ms"):
            await link.open("s", 1, REQUEST, 0.05)
        assert link.connection.attached
        assert not link.connection.usable
        release.set()
        await until(lambda: link.connection.usable)


async def test_a_worker_that_is_late_but_alive_keeps_its_sessions():
    """A deadline that passes while the worker answers GetInfo, or others, gives it time again."""
    release = asyncio.Event()

    async def answer(command):
        if command.session_id == "slow":
            await release.wait()
        return [opened(command)]

    settings = ConnectionSettings(backoff_first_s=0.02, max_extensions=1000)
    async with connected(ScriptedTarget(answer), settings) as link:
        slow = asyncio.create_task(link.open("slow", 1, REQUEST, 0.02))
        await asyncio.sleep(0.2)
        assert link.connection.usable
        for number in range(10):
            await link.open(f"quick-{number}", 1, REQUEST, 5.0)
            await asyncio.sleep(0.02)
        assert not slow.done()
        release.set()
        assert await slow == 0
        assert link.connection.num_late == 0


async def test_patience_with_an_answer_that_never_comes_ends():
    """A command that is never answered fails after its extensions, however alive the worker is."""

    async def answer(command):
        if command.session_id == "never":
            await asyncio.sleep(60)
        return [opened(command)]

    for settings in (
        ConnectionSettings(backoff_first_s=0.02, max_extensions=3),
        ConnectionSettings(backoff_first_s=0.02, max_extensions=1000, max_extra_s=0.15),
    ):
        async with connected(ScriptedTarget(answer), settings) as link:
            with pytest.raises(DeadlineError, match="200 ms"):
                await link.open("never", 1, REQUEST, 0.05)
            await link.open("next", 1, REQUEST, 5.0)


async def test_a_sign_of_life_that_breaks_decides_all_the_same(monkeypatch):
    """Whatever asking for it raises, nobody waits for ever."""

    async def answer(command):
        if command.session_id == "never":
            await asyncio.sleep(60)
        return [opened(command)]

    async def broken(self) -> bool:
        await asyncio.sleep(0)
        raise RuntimeError("planned")

    monkeypatch.setattr(WorkerConnection, "_is_alive", broken)
    settings = ConnectionSettings(backoff_first_s=0.02, max_extensions=1000)
    async with connected(ScriptedTarget(answer), settings) as link:
        with pytest.raises(DeadlineError):
            await link.open("never", 1, REQUEST, 0.05)


async def test_a_lost_stream_fails_what_is_pending_and_comes_back():
    """Whoever waits gets UNAVAILABLE at once; the connection returns by itself."""

    async def answer(command):
        if command.session_id == "forever":
            await asyncio.sleep(60)
        return [opened(command)]

    servicer = ScriptedTarget(answer)
    async with connected(servicer) as link:
        waiting = asyncio.create_task(link.open("forever", 1, REQUEST, 30.0))
        await until(lambda: servicer.frames.get(StreamLane.ROUND))
        servicer.drop_streams()
        with pytest.raises(UnavailableError):
            await waiting
        await until(lambda: servicer.attaches == 4 and link.connection.attached)
        await link.open("again", 1, REQUEST, 5.0)


async def test_a_lost_connection_is_a_warning_that_says_why(caplog):
    """An operator sees which worker went away, and once."""
    servicer = ScriptedTarget()
    async with connected(servicer) as link:
        servicer.drop_streams()
        await until(lambda: servicer.attaches == 4 and link.connection.attached)
    said = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    address = link.connection.address
    assert said == [f"target worker {address}: the target worker ended the stream"]


async def test_letting_go_of_a_worker_is_no_warning(caplog):
    """What the controller ends by itself, in whatever state the worker is, is no failure."""
    async with connected(ScriptedTarget()):
        pass
    async with serving(ScriptedTarget()) as address:
        connection = WorkerConnection(target_protocol(), address, "c", SETTINGS, lambda: None)
        connection.start()
        await until(lambda: connection.attached)
        connection.release("s")
        closing = asyncio.create_task(connection.aclose())
    await closing
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


async def test_a_release_lost_with_its_stream_is_said_again():
    """Sessions outlive a lost stream at the worker, so the release must reach it after all."""
    acknowledge = asyncio.Event()
    seen = []

    async def answer(command):
        if command.WhichOneof("command") == "release":
            seen.append(command.session_id)
            await acknowledge.wait()
            return results(command, Released())
        return [opened(command)]

    servicer = ScriptedTarget(answer)
    async with connected(servicer) as link:
        await link.open("s", 1, REQUEST, 5.0)
        link.release("s")
        await until(lambda: seen == ["s"])
        servicer.drop_streams()
        await until(lambda: seen == ["s", "s"])
        acknowledge.set()
        await link.open("t", 1, REQUEST, 5.0)
        await asyncio.sleep(0.05)
        servicer.drop_streams()
        await until(lambda: servicer.attaches == 6 and link.connection.attached)
        await link.open("u", 1, REQUEST, 5.0)
        assert seen == ["s", "s"]


async def test_a_new_process_is_not_asked_for_old_sessions():
    """Releases of sessions that went with their process are forgotten."""
    seen = []

    async def answer(command):
        if command.WhichOneof("command") == "release":
            seen.append(command.session_id)
            return []
        return [opened(command)]

    servicer = ScriptedTarget(answer)
    async with connected(servicer) as link:
        await link.open("s", 1, REQUEST, 5.0)
        link.release("s")
        await until(lambda: seen == ["s"])
        servicer.worker_id = "w2"
        servicer.drop_streams()
        await until(lambda: servicer.attaches == 4 and link.connection.attached)
        await link.open("t", 1, REQUEST, 5.0)
        assert seen == ["s"]


async def test_nobody_there_is_unavailable_and_retried():
    """A worker that is not up yet costs nothing but an error; it is found once it listens."""
    async with serving(ScriptedTarget()) as address:
        port = int(address.rpartition(":")[2])
    connection = WorkerConnection(target_protocol(), address, "c", SETTINGS, lambda: None)
    connection.start()
    try:
        link = GrpcTargetLink(connection)
        with pytest.raises(UnavailableError):
            await link.open("s", 1, REQUEST, 1.0)
        with pytest.raises(UnavailableError):
            _ = link.info
        async with serving(ScriptedTarget(), port):
            await until(lambda: connection.attached)
            await link.open("s", 1, REQUEST, 5.0)
            assert link.info.name == "scripted"
    finally:
        await connection.aclose()


async def test_a_draining_worker_takes_no_new_sessions():
    """Draining is seen by the next look at the worker."""
    servicer = ScriptedTarget()
    async with connected(servicer) as link:
        assert link.connection.usable
        servicer.draining = True
        await until(lambda: not link.connection.usable)
        servicer.draining = False
        await until(lambda: link.connection.usable)


async def test_an_open_that_is_cancelled_frees_the_session():
    """Nobody will use the session once it is there, so it is released."""
    seen = []

    async def answer(command):
        seen.append(command.WhichOneof("command"))
        if seen[-1] == "open":
            await asyncio.sleep(60)
        return results(command, Released())

    async with connected(ScriptedTarget(answer)) as link:
        opening = asyncio.create_task(link.open("s", 1, REQUEST, 30.0))
        await until(lambda: seen == ["open"])
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await until(lambda: seen == ["open", "release"])
        assert not link.sessions


@pytest.mark.parametrize(
    "error",
    [
        UnknownSessionError("gone"),
        StaleStampError("old", metadata={"last": "1/2/3"}),
        ResourceExhaustedError("full", retry_after_ms=250),
        InvalidArgumentError("tokens[2]", 99, "in [0, 64)"),
    ],
    ids=lambda error: error.reason,
)
async def test_errors_arrive_as_they_were_raised(error):
    """The caller gets the very class, text, details and advice of the worker."""

    async def answer(command):
        return results(command, error)

    async with connected(ScriptedTarget(answer)) as link:
        with pytest.raises(ArboristError) as caught:
            await verify(link)
    assert type(caught.value) is type(error)
    assert vars(caught.value) == vars(error)


async def test_parts_of_an_answer_are_put_together():
    """Features that come in parts reach the caller as one tensor, with the root of the last."""

    async def answer(command):
        return results(command, PrefillResult(3, features(5), 7))

    async with connected(ScriptedTarget(answer)) as link:
        reply = await link.prefill(
            "s",
            STAMP,
            3,
            [1, 2, 3, 4, 5],
            last=True,
            want_features=True,
            num_logprobs=None,
            traceparent="",
            deadline_s=5.0,
        )
    assert reply.value.features == features(5)
    assert reply.value.root == 7
    assert reply.value.logprobs is None
    assert (reply.queue_ms, reply.compute_ms) == (0.5, 1.5)


@pytest.mark.parametrize("logprobs", [None, TokenLogprobs(8, -0.5), TOP], ids=str)
async def test_a_root_with_wrong_logprobs_is_no_root(logprobs):
    """Log-probs that were asked for must be the root's, as many as asked for."""

    async def answer(command):
        return results(command, PrefillResult(0, None, 9, logprobs))

    async with connected(ScriptedTarget(answer)) as link:
        with pytest.raises(SessionFailedError, match="log-probs"):
            await link.prefill(
                "s",
                STAMP,
                0,
                [1],
                last=True,
                want_features=False,
                num_logprobs=0,
                traceparent="",
                deadline_s=5.0,
            )


async def test_logprobs_are_passed_on():
    """Those that were asked for; a worker that sends them unasked is not listened to."""

    async def answer(command):
        return results(command, VerifyResult((), 9, features(1), logprobs=[TOP]))

    async with connected(ScriptedTarget(answer)) as link:
        asked, unasked = await verify(link, num_logprobs=1), await verify(link)
    assert asked.value.logprobs == [TOP]
    assert unasked.value.logprobs == []


async def test_a_verified_tree_comes_back_with_its_times():
    """A valid outcome is passed on unchanged."""

    async def answer(command):
        return results(command, VerifyResult((1, 2), 9, features(3), [], 0.25))

    async with connected(ScriptedTarget(answer)) as link:
        reply = await verify(link)
    assert reply.value.accepted_nodes == (1, 2)
    assert reply.value.bonus == 9
    assert reply.value.features == features(3)
    assert reply.value.min_margin == 0.25
    assert reply.compute_ms == 1.5


@pytest.mark.parametrize(
    ("answer", "options"),
    [
        (VerifyResult((3, 2), 9, features(3)), {}),
        (VerifyResult((1, 3), 9, features(3)), {}),
        (VerifyResult((4,), 9, features(2)), {}),
        (VerifyResult((1,), 64, features(2)), {}),
        (VerifyResult((1,), -1, features(2)), {}),
        (VerifyResult((1,), 9, features(3)), {}),
        (VerifyResult((1,), 9, None), {}),
        (VerifyResult((1,), 9, features(2), [1, 2]), {"want_node_tokens": True}),
        (VerifyResult((1,), 9, features(2), [1, 2, 3, 64]), {"want_node_tokens": True}),
        (VerifyResult((1,), 9, features(2)), {"num_logprobs": 0}),
        (VerifyResult((1,), 9, features(2), logprobs=[OWN, OWN]), {"num_logprobs": 0}),
        (VerifyResult((), 9, features(1), logprobs=[TOP]), {"num_logprobs": 2}),
        (VerifyResult((), 9, features(1), logprobs=[STRANGE]), {"num_logprobs": 1}),
        (Opened(3), {}),
    ],
    ids=[
        "descending",
        "no path",
        "no such node",
        "bonus over vocabulary",
        "negative bonus",
        "too many features",
        "no features",
        "too few node tokens",
        "node token over vocabulary",
        "no log-probs",
        "log-probs of other tokens",
        "too few log-probs",
        "log-prob over vocabulary",
        "another answer",
    ],
)
async def test_an_impossible_outcome_is_refused(answer, options):
    """A worker that breaks its contract fails the command; nothing of it is committed."""

    async def reply(command):
        return results(command, answer)

    async with connected(ScriptedTarget(reply)) as link:
        with pytest.raises((SessionFailedError, InvalidArgumentError)):
            await verify(link, **options)


def together(link: GrpcTargetLink, *session_ids: str, deadline_s: float = 5.0):
    """Asks for several sessions to be opened in one go."""
    builds = [
        lambda command_id, name=name: target_wire.open_command(command_id, name, 1, REQUEST)
        for name in session_ids
    ]
    return link.connection.ask_together(StreamLane.ROUND, builds, deadline_s)


async def test_commands_asked_together_share_a_frame_and_keep_their_order():
    """One frame goes out; every answer is its own command's, whenever it came."""

    async def answer(command):
        if command.session_id == "first":
            await asyncio.sleep(0.02)
            return [*results(command, UnknownSessionError("gone"))]
        return [opened(command)]

    servicer = ScriptedTarget(answer)
    async with connected(servicer) as link:
        first, second = await together(link, "first", "second")
    assert [len(frame) for frame in servicer.frames[StreamLane.ROUND]] == [2]
    assert isinstance(first[-1].outcome, UnknownSessionError)
    assert isinstance(second[-1].outcome, Opened)


async def test_one_answer_of_several_is_not_enough():
    """The deadline holds for all of them; what comes later is dropped and counted."""
    release = asyncio.Event()

    async def answer(command):
        if command.session_id == "slow":
            await release.wait()
        return [opened(command)]

    async with connected(ScriptedTarget(answer)) as link:
        for session_ids in (("quick", "slow"), ("slow", "quick")):
            with pytest.raises(DeadlineError, match="50 ms"):
                await together(link, *session_ids, deadline_s=0.05)
        release.set()
        await until(lambda: link.connection.num_late == 2)
        await together(link, "a", "b")


async def test_a_lost_stream_fails_all_that_was_asked_together():
    """One UnavailableError is raised, and the others leave no trace."""
    asked = asyncio.Event()

    async def answer(command):
        asked.set()
        await asyncio.sleep(60)
        return []

    servicer = ScriptedTarget(answer)
    async with connected(servicer) as link:
        task = asyncio.create_task(together(link, "a", "b"))
        await asked.wait()
        servicer.drop_streams()
        with pytest.raises(UnavailableError):
            await task
        await until(lambda: link.connection.attached)
