"""What answers of both kinds have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, Field

from arborist.orchestrator.api.completion import TextRound
from arborist.orchestrator.api.openai.absent import absent
from arborist.orchestrator.api.openai.choice_output import ChoiceOutput
from arborist.orchestrator.api.openai.metrics import Metrics
from arborist.orchestrator.api.openai.usage import Usage


class Answer(BaseModel):
    """The root of a body, or of one chunk of a stream.

    Attributes:
        id: Of the request; all chunks have the same.
        created: Unix time, in seconds.
        model: Model that answers.
        usage: Tokens so far.
        metrics: How the answer was made; only when it is complete.
    """

    id: str
    created: int
    model: str
    usage: Usage | None = Field(default=None, exclude_if=absent)
    metrics: Metrics | None = Field(default=None, exclude_if=absent)


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What is the same in every chunk.

    Attributes:
        request_id: Made by the controller.
        created_s: Unix time, in seconds.
        model: Model that answers.
    """

    request_id: str
    created_s: int
    model: str


class AnswerWriter(Protocol):
    """Writes one answer, whole or in chunks."""

    def opening(self, output: ChoiceOutput) -> Answer | None:
        """Returns the first chunk of a choice, if it has one before its text."""
        ...

    def piece(self, output: ChoiceOutput, event: TextRound) -> Answer | None:
        """Returns the chunk of one round; None if it has nothing to say."""
        ...

    def closing(self, output: ChoiceOutput) -> Answer:
        """Returns the last chunk of a choice: why it ended."""
        ...

    def counts(self, usage: Usage, metrics: Metrics) -> Answer:
        """Returns the chunk behind all choices."""
        ...

    def whole(self, outputs: Sequence[ChoiceOutput], usage: Usage, metrics: Metrics) -> Answer:
        """Returns the answer of a request that does not stream."""
        ...
