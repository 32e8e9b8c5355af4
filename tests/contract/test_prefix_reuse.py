"""A worker whose sessions share beginnings: what Open answers, and what is left by whom."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from tests.contract.workers import PROMPT, Commands, Stream, served_target, until
from tests.fakes import FakeTargetEngine, continuation

from arborist.common import target_wire
from arborist.common.command import Opened
from arborist.core.engine import SessionKey, TargetOpen
from arborist.core.errors import InvalidArgumentError, SessionFailedError
from arborist.core.features import FeatureSpec
from arborist.core.prefix import Prefix, PrefixCounts
from arborist.core.sampling import SamplingParams
from arborist.v1 import common_pb2
from arborist.v1 import target_pb2 as pb


class SharingTargetEngine(FakeTargetEngine):
    """A fake that keeps whole sessions, and gives a later one what it has in common with one."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[str, list[int]]] = []
        self.failing_keep = False
        self._num_reused: dict[SessionKey, int] = {}
        self._counts = PrefixCounts()

    def open(self, session: SessionKey, request: TargetOpen) -> int:
        """Opens with what is known of the beginning."""
        reserved = super().open(session, request)
        prefix = request.prefix or Prefix("", ())
        found = 0
        for scope, tokens in self.kept:
            common = [a == b for a, b in zip(prefix.tokens, tokens, strict=False)]
            if scope == prefix.scope:
                found = max(found, (*common, False).index(False))
        for token in prefix.tokens[:found]:
            self._sessions[session].append(token)
        self._num_reused[session] = found
        queried, hits = self._counts.num_queried, self._counts.num_hits
        self._counts = PrefixCounts(queried + len(prefix.tokens), hits + found, len(self.kept))
        return reserved

    def num_reused(self, session: SessionKey) -> int:
        """Returns what was found."""
        return self._num_reused[session]

    def keep(self, session: SessionKey) -> None:
        """Keeps a session's tokens."""
        if self.failing_keep:
            raise RuntimeError("no memory for the copy")
        held = self._sessions[session]
        if held.request.prefix is not None:
            self.kept.append((held.request.prefix.scope, list(held.tokens)))

    def known_length(self, prefix: Prefix) -> int:
        """Returns 3 for every scope that was kept."""
        return 3 if prefix.scope in [scope for scope, _ in self.kept] else 0

    @property
    def prefix_counts(self) -> PrefixCounts:
        """Returns the counts."""
        return self._counts


def open_sharing(stream: Stream, commands: Commands, tokens: list[int], scope: str = "a") -> Any:
    """Returns an Open that names the beginning of a session."""
    request = TargetOpen(SamplingParams(), FeatureSpec(), 100, 16, prefix=Prefix.of(scope, tokens))
    return target_wire.open_command(stream.next_id(), commands.session_id, commands.epoch, request)


async def run(stream: Stream, commands: Commands, prompt: list[int]) -> list[Any]:
    """Opens and prefills a whole prompt."""
    return await stream.ask(open_sharing(stream, commands, prompt[:-1]), commands.prefill(prompt))


async def test_open_says_what_is_there_already_and_the_session_goes_on_behind_it() -> None:
    """The second turn prefills its new tokens alone, reads all features, and says the same."""
    engine = SharingTargetEngine()
    async with served_target(engine) as served:
        stream = await served.stream()
        first = Commands(stream, "first")
        opened, result = await run(stream, first, PROMPT)
        assert opened.num_reused == 0
        verify = first.verify([*PROMPT, result.root])
        (verified,) = await stream.ask(verify)
        await stream.ask(first.release_target())
        prompt = [*PROMPT, result.root, verified.bonus, 7]

        second = Commands(stream, "second")
        (opened,) = await stream.ask(open_sharing(stream, second, prompt[:-1]))
        # Root and bonus: the bonus was never computed.
        assert opened.num_reused == len(PROMPT) + 1
        begin = opened.num_reused
        prefilled, read = await stream.ask(
            second.prefill(prompt[begin:], begin), second.read(0, begin)
        )
        assert prefilled.root == continuation(prompt, 1)[0]
        assert len(read.features) == begin
        await until(lambda: served.recorder.prefix_counts.num_hits == begin)


async def test_a_controller_that_says_nothing_gets_and_leaves_nothing() -> None:
    """An Open without a prefix, as older controllers send it, is answered as ever."""
    engine = SharingTargetEngine()
    async with served_target(engine) as served:
        stream = await served.stream()
        for name in ("first", "second"):
            commands = Commands(stream, name)
            opened, _ = await stream.ask(commands.open_target(), commands.prefill(PROMPT))
            assert isinstance(opened, Opened)
            assert opened.num_reused == 0
            await stream.ask(commands.release_target())
        assert engine.kept == []


async def test_scopes_share_nothing() -> None:
    """The same prompt under another scope is computed again."""
    async with served_target(SharingTargetEngine()) as served:
        stream = await served.stream()
        first = Commands(stream, "first")
        await run(stream, first, PROMPT)
        await stream.ask(first.release_target())
        for scope, expected in (("b", 0), ("a", 4)):
            other = Commands(stream, scope)
            (opened,) = await stream.ask(open_sharing(stream, other, PROMPT[:-1], scope))
            assert opened.num_reused == expected


async def test_a_repeated_open_repeats_its_answer() -> None:
    """A controller that lost the answer is told the same count, whatever happened since."""
    async with served_target(SharingTargetEngine()) as served:
        stream = await served.stream()
        first = Commands(stream, "first")
        await run(stream, first, PROMPT)
        await stream.ask(first.release_target())
        second = Commands(stream, "second")
        (opened,) = await stream.ask(open_sharing(stream, second, PROMPT[:-1]))
        await stream.ask(second.prefill(PROMPT[4:], 4))
        (again,) = await stream.ask(open_sharing(stream, second, PROMPT[:-1]))
        assert opened == again
        assert again.num_reused == 4


async def test_a_worker_says_what_it_knows_while_it_computes() -> None:
    """FindPrefix waits for no forward; an engine without a cache knows nothing."""
    engine = SharingTargetEngine()
    request = pb.TargetServiceFindPrefixRequest(prefix=common_pb2.Prefix(scope="a", tokens=PROMPT))
    async with served_target(engine) as served:
        engine.kept.append(("a", PROMPT))
        stream = await served.stream()
        engine.behaviour.gate.clear()
        commands = Commands(stream)
        await stream.send(commands.open_target(), commands.prefill(PROMPT))
        assert (await served.stub().FindPrefix(request)).known_tokens == 3
        request.prefix.scope = "b"
        assert (await served.stub().FindPrefix(request)).known_tokens == 0
        request.prefix.scope = "s" * 65
        with pytest.raises(grpc.aio.AioRpcError, match=r"prefix\.scope"):
            await served.stub().FindPrefix(request)
    async with served_target() as served:
        request.prefix.scope = "a"
        assert (await served.stub().FindPrefix(request)).known_tokens == 0


async def test_a_session_that_was_given_up_leaves_nothing() -> None:
    """What an engine raised in the middle of may be half written, so nobody gets it."""
    engine = SharingTargetEngine()
    async with served_target(engine) as served:
        stream = await served.stream()
        bad = Commands(stream, "bad")
        engine.behaviour.poison.add("bad")
        _, failed = await run(stream, bad, PROMPT)
        assert isinstance(failed, SessionFailedError)
        await stream.ask(bad.release_target())
        assert engine.kept == []


async def test_a_cache_that_fails_frees_the_session_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The trouble is logged and the release answered."""
    engine = SharingTargetEngine()
    engine.failing_keep = True
    async with served_target(engine) as served:
        stream = await served.stream()
        commands = Commands(stream)
        await run(stream, commands, PROMPT)
        await stream.ask(commands.release_target())
        assert engine.kv_reserved_tokens == 0
        assert "keeping a session's prefix failed" in caplog.text


@pytest.mark.parametrize(
    ("field", "scope", "tokens"),
    [
        ("prefix.scope", "s" * 65, [1]),
        ("prefix.scope", "", [1]),
        ("prefix.tokens", "s", [1] * 65_537),
        ("prefix.tokens", "s", [3, -1]),
    ],
)
async def test_a_prefix_out_of_bounds_is_refused(field: str, scope: str, tokens: list[int]) -> None:
    """Scope and tokens are bounded; the message names the field."""
    async with served_target(SharingTargetEngine()) as served:
        stream = await served.stream()
        message = pb.TargetCommand(
            command_id=1,
            session_id="s",
            open=pb.TargetOpen(
                epoch=1,
                max_length=100,
                prefix=common_pb2.Prefix(scope=scope, tokens=tokens),
            ),
        )
        (error,) = await stream.ask(message)
        assert isinstance(error, InvalidArgumentError)
        assert field in error.message
