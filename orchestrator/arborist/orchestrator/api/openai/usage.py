"""How many tokens an answer took."""

from __future__ import annotations

from pydantic import BaseModel, Field

from arborist.orchestrator.api.openai.absent import absent


class PromptTokensDetails(BaseModel):
    """Which tokens of the prompts needed no computing (prefix reuse)."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of all choices; the prompt of several choices counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = Field(default=None, exclude_if=absent)

    @classmethod
    def of(
        cls, prompt_tokens: int, completion_tokens: int, cached_tokens: int | None = None
    ) -> Usage:
        """Returns the counts with their sum.

        Args:
            prompt_tokens: Of all prompts.
            completion_tokens: Of all choices.
            cached_tokens: Of prompt_tokens; None = not known yet.
        """
        cached = None
        if cached_tokens is not None:
            cached = PromptTokensDetails(cached_tokens=cached_tokens)
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=cached,
        )
