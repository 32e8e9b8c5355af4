"""What has come of an output so far."""

from __future__ import annotations

from arborist.client.completion import Completion, RoundEvent, Started, Summary
from arborist.client.generation_wire import read_round, read_started, read_summary
from arborist.core.errors import UnavailableError
from arborist.v1 import generation_pb2 as pb


class Progress:
    """Collects the messages of one stream.

    Attributes:
        started: What the server decided; None before its first message.
        rounds: What each round delivered.
        summary: How it ended; None before.
    """

    def __init__(self) -> None:
        self.started: Started | None = None
        self.rounds: list[RoundEvent] = []
        self.summary: Summary | None = None

    @property
    def text(self) -> str:
        """Returns the text so far."""
        return "".join(one.text for one in self.rounds)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Returns the tokens so far."""
        return tuple(token for one in self.rounds for token in one.token_ids)

    def take(self, message: pb.GenerateResponse) -> RoundEvent | None:
        """Adds a message.

        Returns:
            The round it holds, if it holds one; kinds of a newer server are passed over.
        """
        kind = message.WhichOneof("event")
        if kind == "round":
            self.rounds.append(read_round(message.round))
            return self.rounds[-1]
        if kind == "started":
            self.started = read_started(message.started)
        elif kind == "summary":
            self.summary = read_summary(message.summary)
        return None

    def completion(self) -> Completion:
        """Returns the whole output.

        Raises:
            UnavailableError: The stream ended before its summary.
        """
        if self.started is None or self.summary is None:
            raise UnavailableError("the stream ended before its summary")
        return Completion(self.started, self.text, self.token_ids, tuple(self.rounds), self.summary)
