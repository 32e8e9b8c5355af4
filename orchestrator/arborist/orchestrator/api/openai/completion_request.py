"""The body of `/v1/completions`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainValidator
from pydantic_core import PydanticCustomError

from arborist.orchestrator.api.incoming import Prompt, TextPrompt, TokenPrompt
from arborist.orchestrator.api.openai.generation_fields import GenerationFields


def read_prompts(value: Any) -> tuple[Prompt, ...]:
    """Returns the prompts of a body.

    Args:
        value: Text, token ids, a list of texts, or a list of lists of token ids.
    """
    if isinstance(value, str):
        return (TextPrompt(value),)
    if isinstance(value, list):
        # The empty list too, so that the validator says what is wrong with it.
        if _are_ids(value):
            return (TokenPrompt(value),)
        if all(isinstance(one, str) for one in value):
            return tuple(TextPrompt(one) for one in value)
        if all(isinstance(one, list) and _are_ids(one) for one in value):
            return tuple(TokenPrompt(one) for one in value)
    raise PydanticCustomError("prompt", "text, token ids, or a list of texts or of token ids")


def _are_ids(value: list[Any]) -> bool:
    # True and false are integers too, but no token ids.
    return all(type(one) is int for one in value)


class CompletionRequest(GenerationFields):
    """Text or token ids to continue; several prompts are several choices."""

    prompt: Annotated[tuple[Prompt, ...], PlainValidator(read_prompts)]
    logprobs: int | None = None

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """Returns what to continue, in the order of the choices."""
        return self.prompt

    @property
    def num_logprobs(self) -> int | None:
        """Returns how many log-probs are wanted beside each token's own; None = none at all."""
        return self.logprobs
