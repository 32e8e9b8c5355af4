"""`/tokenize` and `/detokenize`, in vLLM's shape."""

from __future__ import annotations

import asyncio
from typing import Annotated

from pydantic import BaseModel, FailFast, Field
from starlette.requests import Request
from starlette.responses import Response

from arborist.core.errors import InvalidArgumentError
from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.incoming import ChatPrompt, Prompt, TextPrompt
from arborist.orchestrator.api.openai.absent import absent
from arborist.orchestrator.api.openai.chat_message import ChatMessage
from arborist.orchestrator.api.openai.http_limits import HttpLimits
from arborist.orchestrator.api.openai.request_body import read_body
from arborist.orchestrator.api.openai.request_model import RequestModel
from arborist.orchestrator.api.openai.token_label import TokenLabels
from arborist.orchestrator.api.validator import choose_model


class TokenizeRequest(RequestModel):
    """Text, or messages to render; exactly one of them."""

    model: str = ""
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], FailFast()] = Field(default=[])
    return_token_strs: bool = False

    def to_encode(self) -> Prompt:
        """Returns what to tokenise.

        Raises:
            InvalidArgumentError: Neither or both are there.
        """
        given = self.model_fields_set & {"prompt", "messages"}
        if len(given) != 1:
            found = "both" if given else "neither"
            raise InvalidArgumentError("prompt, messages", found, "one of the two")
        if self.prompt is not None:
            return TextPrompt(self.prompt)
        return ChatPrompt(tuple(one.turn() for one in self.messages))


class TokenizeAnswer(BaseModel):
    """Token ids, as a request with this prompt would use them."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = Field(default=None, exclude_if=absent)


class DetokenizeRequest(RequestModel):
    """Token ids to decode."""

    model: str = ""
    tokens: Annotated[list[int], FailFast()]


class DetokenizeAnswer(BaseModel):
    """Text as an answer of these tokens would have it: special tokens have none."""

    prompt: str


class Tokenization:
    """Answers both paths."""

    def __init__(self, completions: Completions, limits: HttpLimits) -> None:
        """Prepares.

        Args:
            completions: Whose tokenizer is asked.
            limits: What bounds a request.
        """
        self._completions = completions
        self._limits = limits
        self._labels = TokenLabels(completions.tokenizer)

    async def tokenize(self, request: Request) -> Response:
        """Answers `/tokenize`."""
        asked = TokenizeRequest.read(await self._body(request))
        model = choose_model(asked.model, self._completions.generator.models())
        ids = await self._completions.encode(asked.to_encode())
        names = None
        if asked.return_token_strs:
            # Two decodes a token: not between other sessions' rounds.
            names = await asyncio.to_thread(lambda: [self._labels.text(one) for one in ids])
        return _response(
            TokenizeAnswer(
                count=len(ids), max_model_len=model.context_length, tokens=ids, token_strs=names
            )
        )

    async def detokenize(self, request: Request) -> Response:
        """Answers `/detokenize`."""
        asked = DetokenizeRequest.read(await self._body(request))
        model = choose_model(asked.model, self._completions.generator.models())
        tokenizer = self._completions.tokenizer
        if tokenizer is None:
            raise InvalidArgumentError(
                "tokens", f"{len(asked.tokens)} tokens", "absent: the model has no tokenizer"
            )
        for index, token in enumerate(asked.tokens):
            if not 0 <= token < model.vocab_size:
                raise InvalidArgumentError(
                    f"tokens[{index}]", token, f"an id in [0, {model.vocab_size})"
                )
        text = await asyncio.to_thread(tokenizer.decode, asked.tokens)
        return _response(DetokenizeAnswer(prompt=text))

    async def _body(self, request: Request) -> bytes:
        return await read_body(request.scope, request.receive, self._limits)


def _response(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")
