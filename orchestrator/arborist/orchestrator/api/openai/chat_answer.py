"""Answers of `/v1/chat/completions`, whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from arborist.orchestrator.api.completion import TextRound
from arborist.orchestrator.api.openai.absent import absent
from arborist.orchestrator.api.openai.answer import Answer, AnswerHead
from arborist.orchestrator.api.openai.chat_logprobs import ChatLogprobs, chat_logprobs
from arborist.orchestrator.api.openai.choice_output import ChoiceOutput
from arborist.orchestrator.api.openai.generation_fields import GenerationFields
from arborist.orchestrator.api.openai.metrics import Metrics
from arborist.orchestrator.api.openai.token_label import TokenLabels
from arborist.orchestrator.api.openai.usage import Usage


class AssistantMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One output; `token_ids` when they were asked for, `seed` unless greedy."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str
    token_ids: list[int] | None = Field(default=None, exclude_if=absent)
    seed: int | None = Field(default=None, exclude_if=absent)


class ChatCompletion(Answer):
    """A whole answer."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    prompt_token_ids: list[int] | None = Field(default=None, exclude_if=absent)


class ChatDelta(BaseModel):
    """What is new."""

    role: Literal["assistant"] | None = Field(default=None, exclude_if=absent)
    content: str | None = Field(default=None, exclude_if=absent)


class ChatChunkChoice(BaseModel):
    """What is new of one output."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = Field(default=None, exclude_if=absent)
    seed: int | None = Field(default=None, exclude_if=absent)


class ChatChunk(Answer):
    """One event of a stream."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    prompt_token_ids: list[int] | None = Field(default=None, exclude_if=absent)


class ChatWriter:
    """Writes chat answers; implements `answer.AnswerWriter`."""

    def __init__(self, head: AnswerHead, request: GenerationFields, labels: TokenLabels) -> None:
        """Begins an answer.

        Args:
            head: What is the same in every chunk.
            request: What is wanted besides text.
            labels: Text of single tokens.
        """
        self._id = f"chatcmpl-{head.request_id}"
        self._head = head
        self._want_ids = request.return_token_ids
        self._want_logprobs = request.num_logprobs is not None
        self._labels = labels

    def opening(self, output: ChoiceOutput) -> ChatChunk:
        """Returns who speaks."""
        delta = ChatDelta(role="assistant", content="")
        choice = ChatChunkChoice(index=output.index, delta=delta, seed=output.seed)
        prompt = list(output.prompt_token_ids) if self._want_ids else None
        return self._chunk([choice], prompt_token_ids=prompt)

    def piece(self, output: ChoiceOutput, event: TextRound) -> ChatChunk | None:
        """Returns the text of one round, which may lag behind its tokens."""
        if not (event.text or self._want_ids or self._want_logprobs):
            return None
        round_ = event.round
        choice = ChatChunkChoice(
            index=output.index,
            delta=ChatDelta(content=event.text),
            logprobs=(
                chat_logprobs(round_.logprobs, self._labels) if self._want_logprobs else None
            ),
            token_ids=list(round_.token_ids) if self._want_ids else None,
        )
        return self._chunk([choice])

    def closing(self, output: ChoiceOutput) -> ChatChunk:
        """Returns why an output ended."""
        choice = ChatChunkChoice(
            index=output.index, delta=ChatDelta(), finish_reason=output.finish_reason
        )
        return self._chunk([choice])

    def counts(self, usage: Usage, metrics: Metrics) -> ChatChunk:
        """Returns the chunk behind all choices."""
        return self._chunk([], usage=usage, metrics=metrics)

    def whole(
        self, outputs: Sequence[ChoiceOutput], usage: Usage, metrics: Metrics
    ) -> ChatCompletion:
        """Returns the answer of a request that does not stream."""
        choices = [
            ChatChoice(
                index=one.index,
                message=AssistantMessage(content=one.text),
                logprobs=(
                    chat_logprobs(one.logprobs, self._labels) if self._want_logprobs else None
                ),
                finish_reason=one.finish_reason,
                token_ids=one.token_ids if self._want_ids else None,
                seed=one.seed,
            )
            for one in outputs
        ]
        return ChatCompletion(
            id=self._id,
            created=self._head.created_s,
            model=self._head.model,
            choices=choices,
            usage=usage,
            metrics=metrics,
            prompt_token_ids=list(outputs[0].prompt_token_ids) if self._want_ids else None,
        )

    def _chunk(
        self,
        choices: list[ChatChunkChoice],
        *,
        prompt_token_ids: list[int] | None = None,
        usage: Usage | None = None,
        metrics: Metrics | None = None,
    ) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            created=self._head.created_s,
            model=self._head.model,
            choices=choices,
            prompt_token_ids=prompt_token_ids,
            usage=usage,
            metrics=metrics,
        )
