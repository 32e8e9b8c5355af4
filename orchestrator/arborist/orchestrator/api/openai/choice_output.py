"""What has come of one choice so far."""

from __future__ import annotations

from arborist.core.logprobs import TokenLogprobs
from arborist.orchestrator.api.completion import CompletionEvent, TextRound
from arborist.orchestrator.generation import GenerationRequest, Started, Summary
from arborist.orchestrator.session import FinishReason

_FINISH_REASONS = {
    FinishReason.EOS: "stop",
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "stop",
}


class ChoiceOutput:
    """Collects the events of one choice.

    Attributes:
        index: Of the choice, from 0.
        prompt_token_ids: Its prompt.
        seed: Seed of its sampling; None = greedy.
        token_ids: Tokens delivered.
        logprobs: One per token, if they were asked for.
        max_depth: Levels of its deepest tree.
        num_rounds: Rounds delivered, the prefill's included.
    """

    def __init__(self, index: int, request: GenerationRequest) -> None:
        """Begins empty.

        Args:
            index: Of the choice.
            request: What it was started with.
        """
        self.index = index
        self.prompt_token_ids = request.prompt_token_ids
        self.seed: int | None = None
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self._greedy = request.sampling.greedy
        self.max_depth = 0
        self.num_rounds = 0
        self._text: list[str] = []
        self._started: Started | None = None
        self._summary: Summary | None = None

    def add(self, event: CompletionEvent) -> None:
        """Takes the next event."""
        if isinstance(event, Started):
            self._started = event
            self.seed = None if self._greedy else event.seed
        elif isinstance(event, TextRound):
            self.num_rounds += 1
            self._text.append(event.text)
            self.token_ids.extend(event.round.token_ids)
            self.logprobs.extend(event.round.logprobs)
            self.max_depth = max(self.max_depth, event.round.depth)
        else:
            self._summary = event

    @property
    def text(self) -> str:
        """Returns the text so far."""
        return "".join(self._text)

    @property
    def started(self) -> Started:
        """Returns what the controller decided."""
        if self._started is None:
            raise RuntimeError("the generation has not started")
        return self._started

    @property
    def summary(self) -> Summary:
        """Returns how it ended."""
        if self._summary is None:
            raise RuntimeError("the generation has not ended")
        return self._summary

    @property
    def finish_reason(self) -> str:
        """Returns why it ended, in OpenAI's words."""
        return _FINISH_REASONS[self.summary.finish_reason]
