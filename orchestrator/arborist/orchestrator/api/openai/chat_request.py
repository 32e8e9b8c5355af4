"""The body of `/v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import FailFast, model_validator

from arborist.core.errors import InvalidArgumentError
from arborist.orchestrator.api.incoming import ChatPrompt, Prompt
from arborist.orchestrator.api.openai.chat_message import ChatMessage
from arborist.orchestrator.api.openai.generation_fields import GenerationFields


class ChatRequest(GenerationFields):
    """A conversation to continue."""

    messages: Annotated[list[ChatMessage], FailFast()]
    logprobs: bool = False
    top_logprobs: int | None = None

    @model_validator(mode="after")
    def _top_of_something(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidArgumentError(
                "top_logprobs", self.top_logprobs, "absent, or given together with logprobs"
            )
        return self

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """Returns the one conversation."""
        return (ChatPrompt(tuple(one.turn() for one in self.messages)),)

    @property
    def num_logprobs(self) -> int | None:
        """Returns how many log-probs are wanted beside each token's own; None = none at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def names(self) -> dict[str, str]:
        """Returns what this door calls fields that the validator knows by another name."""
        return {**super().names, "logprobs": "top_logprobs"}
