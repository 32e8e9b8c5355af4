"""Answers of `/v1/completions`, whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from arborist.core.logprobs import TokenLogprobs
from arborist.orchestrator.api.completion import TextRound
from arborist.orchestrator.api.openai.absent import absent
from arborist.orchestrator.api.openai.answer import Answer, AnswerHead
from arborist.orchestrator.api.openai.choice_output import ChoiceOutput
from arborist.orchestrator.api.openai.completion_logprobs import (
    CompletionLogprobs,
    CompletionLogprobsWriter,
)
from arborist.orchestrator.api.openai.generation_fields import GenerationFields
from arborist.orchestrator.api.openai.metrics import Metrics
from arborist.orchestrator.api.openai.token_label import TokenLabels
from arborist.orchestrator.api.openai.usage import Usage


class CompletionChoice(BaseModel):
    """One output, or what is new of it; ids when they were asked for, `seed` unless greedy."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = Field(default=None, exclude_if=absent)
    prompt_token_ids: list[int] | None = Field(default=None, exclude_if=absent)
    seed: int | None = Field(default=None, exclude_if=absent)


class Completion(Answer):
    """A whole answer, or one event of a stream: they have the same shape."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class CompletionWriter:
    """Writes completions; implements `answer.AnswerWriter`."""

    def __init__(self, head: AnswerHead, request: GenerationFields, labels: TokenLabels) -> None:
        """Begins an answer.

        Args:
            head: What is the same in every chunk.
            request: What is wanted besides text.
            labels: Text of single tokens.
        """
        self._id = f"cmpl-{head.request_id}"
        self._head = head
        self._want_ids = request.return_token_ids
        self._want_logprobs = request.num_logprobs is not None
        self._labels = labels
        self._logprobs: dict[int, CompletionLogprobsWriter] = {}

    def opening(self, output: ChoiceOutput) -> Completion | None:
        """Returns the prompt's ids and the seed, if there is any such thing to tell."""
        if not self._want_ids and output.seed is None:
            return None
        choice = CompletionChoice(
            index=output.index,
            text="",
            token_ids=[] if self._want_ids else None,
            prompt_token_ids=list(output.prompt_token_ids) if self._want_ids else None,
            seed=output.seed,
        )
        return self._answer([choice])

    def piece(self, output: ChoiceOutput, event: TextRound) -> Completion | None:
        """Returns the text of one round, which may lag behind its tokens."""
        if not (event.text or self._want_ids or self._want_logprobs):
            return None
        choice = CompletionChoice(
            index=output.index,
            text=event.text,
            logprobs=self._write_logprobs(output.index, event.round.logprobs),
            token_ids=list(event.round.token_ids) if self._want_ids else None,
        )
        return self._answer([choice])

    def closing(self, output: ChoiceOutput) -> Completion:
        """Returns why an output ended."""
        choice = CompletionChoice(index=output.index, text="", finish_reason=output.finish_reason)
        return self._answer([choice])

    def counts(self, usage: Usage, metrics: Metrics) -> Completion:
        """Returns the chunk behind all choices."""
        return self._answer([], usage, metrics)

    def whole(self, outputs: Sequence[ChoiceOutput], usage: Usage, metrics: Metrics) -> Completion:
        """Returns the answer of a request that does not stream."""
        choices = [
            CompletionChoice(
                index=one.index,
                text=one.text,
                logprobs=self._write_logprobs(one.index, one.logprobs),
                finish_reason=one.finish_reason,
                token_ids=one.token_ids if self._want_ids else None,
                prompt_token_ids=list(one.prompt_token_ids) if self._want_ids else None,
                seed=one.seed,
            )
            for one in outputs
        ]
        return self._answer(choices, usage, metrics)

    def _write_logprobs(
        self, index: int, tokens: Sequence[TokenLogprobs]
    ) -> CompletionLogprobs | None:
        if not self._want_logprobs:
            return None
        writer = self._logprobs.setdefault(index, CompletionLogprobsWriter(self._labels))
        return writer.write(tokens)

    def _answer(
        self,
        choices: list[CompletionChoice],
        usage: Usage | None = None,
        metrics: Metrics | None = None,
    ) -> Completion:
        return Completion(
            id=self._id,
            created=self._head.created_s,
            model=self._head.model,
            choices=choices,
            usage=usage,
            metrics=metrics,
        )
