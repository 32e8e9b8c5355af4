"""How many tokens an answer took."""

from __future__ import annotations

from pydantic import BaseModel


class Usage(BaseModel):
    """Tokens of all choices; the prompt of several choices counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int) -> Usage:
        """Returns the counts with their sum."""
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )
