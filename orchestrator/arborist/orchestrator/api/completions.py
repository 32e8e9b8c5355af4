"""What every door does with a request: check it, start it, stream it with its text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from arborist.orchestrator.api.completion import CompletionEvent, stream_completion
from arborist.orchestrator.api.incoming import ChatPrompt, IncomingRequest, Prompt, TextPrompt
from arborist.orchestrator.api.tokenizer import Tokenizer
from arborist.orchestrator.api.validator import RequestLimits, Validator, ValidRequest
from arborist.orchestrator.generation import Generation, Generator

# Tokenising more text than this may take longer than a round of the other sessions.
_MAX_INLINE_CHARACTERS = 8192


class Completions:
    """The one way from a client's request to the controller."""

    def __init__(
        self, generator: Generator, tokenizer: Tokenizer | None, limits: RequestLimits
    ) -> None:
        """Joins controller and text.

        Args:
            generator: The controller.
            tokenizer: Of the model served; None = it takes and gives token ids only.
            limits: What requests may ask for.
        """
        self.generator = generator
        self.tokenizer = tokenizer
        self.validator = Validator(limits, tokenizer)

    async def validate(self, request: IncomingRequest) -> ValidRequest:
        """Checks a request; starts nothing.

        Raises:
            ArboristError: What is wrong, see `Validator.validate`.
        """
        models = self.generator.models()
        if num_characters(request.prompt) <= _MAX_INLINE_CHARACTERS:
            return self.validator.validate(request, models)
        return await asyncio.to_thread(self.validator.validate, request, models)

    def start(
        self, request: ValidRequest
    ) -> tuple[Generation, AsyncGenerator[CompletionEvent, None]]:
        """Admits a request.

        Returns:
            The generation, for the caller to close however its stream ends, and its events.
        Raises:
            ArboristError: It was refused; nothing runs.
        """
        generation = self.generator.generate(request.generation)
        return generation, stream_completion(generation, request, self.tokenizer)

    async def encode(self, prompt: Prompt) -> list[int]:
        """Returns a prompt's token ids as a request would use them.

        Raises:
            InvalidArgumentError: It cannot be encoded.
        """
        if num_characters(prompt) <= _MAX_INLINE_CHARACTERS:
            return self.validator.encode(prompt)
        return await asyncio.to_thread(self.validator.encode, prompt)


def num_characters(prompt: Prompt | None) -> int:
    """Returns the length of the text to tokenise."""
    if isinstance(prompt, TextPrompt):
        return len(prompt.text)
    if isinstance(prompt, ChatPrompt):
        return sum(len(turn.content) for turn in prompt.turns)
    return 0
