"""Errors name a field as the client of this door wrote it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from arborist.core.errors import InvalidArgumentError
from arborist.orchestrator.api.openai.generation_fields import GenerationFields


@contextmanager
def renamed_fields(fields: GenerationFields, prompt: str) -> Iterator[None]:
    """Renames the fields that the validator knows by another name.

    Args:
        fields: The request.
        prompt: What its prompt is called: "prompt", or "prompt[2]" for one of several.
    Raises:
        InvalidArgumentError: In place of the one raised inside.
    """
    names = {"token_ids": prompt, "prompt": prompt, **fields.names}
    try:
        yield
    except InvalidArgumentError as error:
        field, value, limit = (error.metadata[one] for one in ("field", "value", "limit"))
        stem, bracket, rest = field.partition("[")
        if stem not in names:
            raise
        raise InvalidArgumentError(names[stem] + bracket + rest, value, limit) from None
