"""A generation with its text: what every door of the public API streams."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from arborist.orchestrator.api.text_stream import TextDecoder, TextStream
from arborist.orchestrator.api.validator import ValidRequest
from arborist.orchestrator.generation import (
    DeliveredRound,
    Generation,
    Started,
    Summary,
)
from arborist.orchestrator.session import FinishReason


@dataclass(frozen=True, slots=True)
class TextRound:
    """One round with its text.

    Attributes:
        round: What was delivered; cut after the token that completed a stop string.
        text: Text that became certain; may lag behind the tokens, never behind the last round.
    """

    round: DeliveredRound
    text: str


CompletionEvent: TypeAlias = Started | TextRound | Summary


async def stream_completion(
    generation: Generation, request: ValidRequest, decoder: TextDecoder | None
) -> AsyncGenerator[CompletionEvent, None]:
    """Streams a generation with its text and ends it at a stop string.

    Args:
        generation: Under way; closed here however the stream ends, also when it is cancelled or
            left: wrap the stream in `contextlib.aclosing`.
        request: What it was started with.
        decoder: The model's tokenizer; None = no text.
    Yields:
        Started, a TextRound per round, Summary.
    Raises:
        ArboristError: The generation cannot go on; what was yielded stands.
    """
    text = TextStream(decoder, request.stop)
    num_tokens = 0
    async with aclosing(generation):
        async for event in generation:
            if not isinstance(event, DeliveredRound):
                yield event
                continue
            last = _is_last(event, num_tokens, request)
            spoken = len(event.token_ids) - _ends_silently(event, request)
            delta = text.push(event.token_ids[:spoken], last=last)
            round_ = _cut(event, delta.num_tokens) if delta.stopped else event
            num_tokens += len(round_.token_ids)
            if delta.stopped:
                await generation.finish(FinishReason.STOP, num_tokens)
            yield TextRound(round_, delta.text)


def _ends_silently(round_: DeliveredRound, request: ValidRequest) -> bool:
    """Says whether a round ends with a stop token: delivered, but no text, as the model's own."""
    tokens = round_.token_ids
    return bool(tokens) and tokens[-1] in request.generation.stop_token_ids


def _cut(round_: DeliveredRound, num_tokens: int) -> DeliveredRound:
    return dataclasses.replace(
        round_,
        token_ids=round_.token_ids[:num_tokens],
        logprobs=round_.logprobs[:num_tokens],
    )


def _is_last(round_: DeliveredRound, num_before: int, request: ValidRequest) -> bool:
    """Says whether the output ends with a round, before the Summary says so.

    Known here because the round that ends an output carries the rest of its text.
    """
    tokens = round_.token_ids
    if num_before + len(tokens) >= request.generation.max_tokens:
        return True
    if not tokens:
        return False
    return tokens[-1] in request.eos_token_ids or _ends_silently(round_, request)
