"""`arborist chat`: a conversation with a server, its commands, and Ctrl-C."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from contextlib import contextmanager

import grpc.aio
import pytest
from tests.contract.scripted_generator import ScriptedGenerator
from tests.unit.api.tokenizers import byte_level_tokenizer

from arborist.cli.chat.chat_loop import ChatLoop
from arborist.cli.chat.conversation import Conversation
from arborist.cli.main import main
from arborist.client.completion import RoundEvent, RoundTimes
from arborist.client.prompt import Message
from arborist.core.errors import UnavailableError
from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.generation_servicer import GenerationServicer
from arborist.orchestrator.api.validator import RequestLimits
from arborist.v1 import generation_pb2_grpc as pb_grpc

TIMES = RoundTimes(0.0, 0.0, 0.0, 0.0, 0.0)


def event(index: int, text: str, num_tokens: int = 1, accepted: int = 0) -> RoundEvent:
    """One round."""
    return RoundEvent(index, (7,) * num_tokens, text, 4, accepted, 2, TIMES)


class Terminal:
    """Types lines, shows output, and plays the server."""

    def __init__(self, *lines: str | BaseException) -> None:
        self._lines = iter(lines)
        self.answers: list[list[RoundEvent | BaseException]] = []
        self.asked: list[list[Message]] = []
        self.num_closed = 0
        self.shown = ""
        self.notes: list[str] = []
        self._now_s = 0.0

    def read(self) -> str | None:
        """The next line; an exception is raised."""
        line = next(self._lines, None)
        if isinstance(line, BaseException):
            raise line
        return line

    def write(self, text: str) -> None:
        """Takes text."""
        self.shown += text

    def clock(self) -> float:
        """Half a second later each time."""
        self._now_s += 0.5
        return self._now_s

    @contextmanager
    def ask(self, messages: list[Message]) -> Iterator[Iterator[RoundEvent]]:
        """Streams the next answer."""
        self.asked.append(messages)
        answer = self.answers.pop(0)

        def rounds() -> Iterator[RoundEvent]:
            for one in answer:
                if isinstance(one, BaseException):
                    raise one
                yield one

        try:
            yield rounds()
        finally:
            self.num_closed += 1

    def run(self, system: str | None = None) -> bool:
        """Talks to the end."""
        loop = ChatLoop(
            self.ask,
            Conversation(system),
            read=self.read,
            write=self.write,
            note=self.notes.append,
            clock=self.clock,
        )
        return loop.run()


def test_later_questions_carry_what_was_said() -> None:
    """The system's message stays first; /reset forgets the rest."""
    terminal = Terminal("one", "", "two", "/reset", "three")
    terminal.answers = [[event(-1, "A"), event(0, "B")], [event(-1, "C")], [event(-1, "D")]]

    assert terminal.run(system="be brief")

    system = Message("system", "be brief")
    first = [system, Message("user", "one")]
    assert terminal.asked == [
        first,
        [*first, Message("assistant", "AB"), Message("user", "two")],
        [system, Message("user", "three")],
    ]
    assert terminal.shown == "AB\nC\nD\n"


def test_ctrl_c_ends_the_answer_and_not_the_conversation() -> None:
    """What was seen stays in the conversation, the server is told, and the next line is read."""
    terminal = Terminal("one", KeyboardInterrupt(), "two", "three", "/quit", "never")
    terminal.answers = [
        [event(-1, "half"), KeyboardInterrupt()],
        [KeyboardInterrupt()],
        [event(-1, "whole")],
    ]

    assert terminal.run()

    assert terminal.num_closed == 3
    assert terminal.notes.count("(cancelled)") == 2
    # A question nothing was said to is taken back.
    assert terminal.asked[2] == [
        Message("user", "one"),
        Message("assistant", "half"),
        Message("user", "three"),
    ]


def test_a_failure_is_said_and_the_conversation_goes_on() -> None:
    """The line is the server's; the question may be asked again, and the exit code knows."""
    terminal = Terminal("one", "two")
    terminal.answers = [[UnavailableError("the server stops")], [event(-1, "A")]]

    assert not terminal.run()

    assert "arborist: the server stops" in terminal.notes
    assert terminal.asked[1] == [Message("user", "two")]


def test_stats_add_up() -> None:
    """Tau counts rounds, speed the tokens after each answer's first."""
    terminal = Terminal("one", "two", "/stats", "/nonsense")
    terminal.answers = [
        [event(-1, "a"), event(0, "b", 3, 2), event(1, "c", 1)],
        [event(-1, "a"), event(0, "b", 4, 3)],
    ]

    terminal.run()

    last, everything, unknown = terminal.notes
    assert last == "last answer: 5 tokens, 1 rounds, tau=4.00, tokens_per_s=8.0"
    assert everything == "all 2 answers: 10 tokens, 3 rounds, tau=2.67, tokens_per_s=5.3"
    assert "/nonsense" in unknown


def chat(monkeypatch: pytest.MonkeyPatch, typed: str, *arguments: str) -> int:
    """Runs the command with piped input and returns its exit code."""
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    with pytest.raises(SystemExit) as caught:
        main(["chat", *arguments])
    return int(caught.value.code or 0)


@pytest.fixture
def tokenizer() -> object:
    """Of the model served."""
    return byte_level_tokenizer()


async def test_a_piped_conversation_with_a_server(
    tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers go to stdout as they come, notes to stderr, options to the server."""
    generator = ScriptedGenerator([tokenizer.encode("ab"), tokenizer.encode("c é")])
    server = grpc.aio.server()
    pb_grpc.add_GenerationServiceServicer_to_server(
        GenerationServicer(Completions(generator, tokenizer, RequestLimits())), server
    )
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        options = ("--address", address, "--max-tokens", "9", "--speculation", "off")
        code = await asyncio.to_thread(chat, monkeypatch, "hello\n/stats\nagain\n", *options)
        refused = await asyncio.to_thread(
            chat, monkeypatch, "hello\n", *options, "--model", "other"
        )
    finally:
        await server.stop(None)
    out, err = capsys.readouterr()

    assert (code, refused) == (0, 1)
    assert out == "abc é\nabc é\n\n"
    assert "rounds, tau=" in err
    assert "model = other" in err
    first, second = generator.requests
    assert first.max_tokens == 9
    assert first.speculation.enabled is False
    assert tokenizer.decode(second.prompt_token_ids).startswith("hello")
    assert "abc é" in tokenizer.decode(second.prompt_token_ids)
