"""Reads what the user says, streams the answers, obeys the commands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from arborist.cli.chat.chat_stats import AnswerStats
from arborist.cli.chat.conversation import Conversation
from arborist.cli.failure import describe
from arborist.client.completion import RoundEvent
from arborist.client.prompt import Message
from arborist.core.errors import ArboristError

HELP = (
    "/stats  rounds, tau and tokens/s of the last answer and of all\n"
    "/reset  forget the conversation\n"
    "/quit   end, as Ctrl-D does\n"
    "Ctrl-C  cancel the answer under way"
)


class AnswerStream(Protocol):
    """An answer as it comes."""

    def __iter__(self) -> Iterator[RoundEvent]:
        """Returns its rounds."""
        ...


Ask = Callable[[list[Message]], AbstractContextManager[AnswerStream]]
"""Begins an answer; leaving the context cancels what has not come."""


class ChatLoop:
    """One conversation."""

    def __init__(
        self,
        ask: Ask,
        conversation: Conversation,
        *,
        read: Callable[[], str | None],
        write: Callable[[str], None],
        note: Callable[[str], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Prepares.

        Args:
            ask: Begins an answer.
            conversation: What was said so far.
            read: Returns the next line, None at the end; raises KeyboardInterrupt on Ctrl-C.
            write: Takes text of answers, as it comes.
            note: Takes whole lines about the conversation.
            clock: Seconds.
        """
        self._ask = ask
        self._conversation = conversation
        self._read = read
        self._write = write
        self._note = note
        self._clock = clock
        self._last = AnswerStats()
        self._all = AnswerStats()

    def run(self) -> bool:
        """Talks until the input ends or /quit.

        Returns:
            Whether every question was answered or cancelled by the user.
        """
        well = True
        while True:
            try:
                line = self._read()
            except KeyboardInterrupt:
                self._note("(nothing to cancel; /quit or Ctrl-D ends)")
                continue
            if line is None or line.strip() == "/quit":
                return well
            if line.strip().startswith("/"):
                self._obey(line.strip())
            elif line.strip():
                well = self._answer(line) and well

    def _obey(self, command: str) -> None:
        if command == "/stats":
            self._note(f"last answer: {self._last.line()}")
            self._note(f"all {self._all.num_answers} answers: {self._all.line()}")
        elif command == "/reset":
            self._conversation.reset()
            self._note("(forgotten)")
        elif command == "/help":
            self._note(HELP)
        else:
            self._note(f"(no command {command}; /help lists them)")

    def _answer(self, text: str) -> bool:
        self._conversation.ask(text)
        rounds: list[RoundEvent] = []
        came_s: list[float] = []
        failure: ArboristError | None = None
        cancelled = False
        try:
            with self._ask(self._conversation.messages) as stream:
                for one in stream:
                    came_s.append(self._clock())
                    rounds.append(one)
                    self._write(one.text)
        except KeyboardInterrupt:
            cancelled = True
        except ArboristError as error:
            failure = error
        # What was seen counts as said, also when it breaks off.
        self._conversation.answer("".join(one.text for one in rounds))
        self._last = AnswerStats.of(rounds, came_s)
        self._all.add(self._last)
        self._write("\n")
        if cancelled:
            self._note("(cancelled)")
        if failure is not None:
            self._note(f"arborist: {describe(failure)}")
        return failure is None
