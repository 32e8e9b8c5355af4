"""`/v1/completions` and `/v1/chat/completions`."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TypeAlias

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from arborist.core.errors import ArboristError
from arborist.core.sampling import choice_seed
from arborist.orchestrator.api.completion import CompletionEvent, TextRound
from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.error_response import error_body, unexpected_error
from arborist.orchestrator.api.key_middleware import client_of
from arborist.orchestrator.api.openai.answer import Answer, AnswerHead, AnswerWriter
from arborist.orchestrator.api.openai.bounded_send import SlowReaderError, bounded_send
from arborist.orchestrator.api.openai.choice_output import ChoiceOutput
from arborist.orchestrator.api.openai.choices import Choices
from arborist.orchestrator.api.openai.event_stream import EventStream
from arborist.orchestrator.api.openai.field_names import renamed_fields
from arborist.orchestrator.api.openai.generation_fields import GenerationFields
from arborist.orchestrator.api.openai.http_limits import HttpLimits
from arborist.orchestrator.api.openai.leaving_client import while_client_stays
from arborist.orchestrator.api.openai.metrics import metrics_of
from arborist.orchestrator.api.openai.request_body import read_body
from arborist.orchestrator.api.openai.token_label import TokenLabels
from arborist.orchestrator.api.openai.usage import Usage
from arborist.orchestrator.api.validator import ValidRequest
from arborist.orchestrator.generation import Started

_Event: TypeAlias = tuple[ChoiceOutput, CompletionEvent]
_Events: TypeAlias = AsyncGenerator[_Event, None]

_log = logging.getLogger(__name__)


class GenerationEndpoint:
    """Answers one path; an ASGI application.

    It reads and writes by itself, where a framework's response would be: so a client that leaves
    ends its request wherever that stands, in the queue too, and no body is read beyond its limit.
    """

    def __init__(
        self,
        read: Callable[[bytes], GenerationFields],
        writer: Callable[[AnswerHead, GenerationFields, TokenLabels], AnswerWriter],
        completions: Completions,
        limits: HttpLimits,
    ) -> None:
        """Prepares the path.

        Args:
            read: Makes a request of a body.
            writer: Makes what writes its answer.
            completions: Where requests run.
            limits: What bounds them.
        """
        self._read = read
        self._writer = writer
        self._completions = completions
        self._limits = limits
        self._labels = TokenLabels(completions.tokenizer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request.

        Raises:
            ArboristError: It was refused, or failed before its answer began.
        """
        try:
            body = await read_body(scope, receive, self._limits)
        except ClientDisconnect:
            return
        fields = self._read(body)
        limit_s = self._limits.client_timeout_s
        answer = self._answer(fields, scope, receive, bounded_send(send, limit_s))
        try:
            await while_client_stays(receive, answer)
        except SlowReaderError:
            # The answer stays without an end: so the server closes the connection.
            _log.warning("a client read nothing for %g s: its request is ended", limit_s)

    async def _answer(
        self, fields: GenerationFields, scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers = Headers(scope=scope)
        client = client_of(scope)
        requests = await self._validate(fields, headers.get("traceparent", ""), client)
        async with Choices(self._completions, requests) as choices:
            if fields.stream:
                await self._stream(choices, fields, EventStream(send))
            else:
                response = await self._whole(choices, fields)
                await response(scope, receive, send)

    async def _validate(
        self, fields: GenerationFields, traceparent: str, client: str
    ) -> list[ValidRequest]:
        """Returns a checked request per choice: all of the first prompt, then of the next."""
        prompts = fields.prompts
        self._completions.validator.check_choices(len(prompts), fields.n)
        requests: list[ValidRequest] = []
        for index, prompt in enumerate(prompts):
            name = "prompt" if len(prompts) == 1 else f"prompt[{index}]"
            with renamed_fields(fields, name):
                asked = dataclasses.replace(fields.incoming(prompt, traceparent), client_key=client)
                valid = await self._completions.validate(asked)
            requests += [_choice(valid, number) for number in range(fields.n)]
        return requests

    async def _whole(self, choices: Choices, fields: GenerationFields) -> Response:
        async with aclosing(choices.events()) as events:
            async for output, event in events:
                output.add(event)
        outputs = choices.outputs
        writer = self._begin(outputs[0].started, fields)
        answer = writer.whole(outputs, _usage(outputs, fields), metrics_of(outputs))
        return Response(answer.model_dump_json(), media_type="application/json")

    async def _stream(
        self, choices: Choices, fields: GenerationFields, stream: EventStream
    ) -> None:
        async with aclosing(choices.events()) as events:
            # Until there is something to say a failure still has a status of its own.
            started, held = await _until_first_text(events)
            writer = self._begin(started, fields)
            try:
                await stream.start()
                async for chunk in _chunks(held, events, fields, writer):
                    await stream.event(chunk)
                if fields.stream_options.include_usage:
                    outputs = choices.outputs
                    chunk = writer.counts(_usage(outputs, fields), metrics_of(outputs))
                    await stream.event(chunk)
            except SlowReaderError:
                raise
            except ArboristError as error:
                await stream.error(error_body(error))
            except Exception as error:  # noqa: BLE001 - the client gets an incident number
                await stream.error(error_body(unexpected_error(error)))
            await stream.end()

    def _begin(self, started: Started, fields: GenerationFields) -> AnswerWriter:
        head = AnswerHead(started.request_id, int(time.time()), started.model)
        return self._writer(head, fields, self._labels)


async def _until_first_text(events: _Events) -> tuple[Started, list[_Event]]:
    """Returns the first choice's start, and all events so far."""
    held: list[_Event] = []
    async for one in events:
        held.append(one)
        if not isinstance(one[1], Started):
            break
    started = next(event for _, event in held if isinstance(event, Started))
    return started, held


async def _chunks(
    held: list[_Event], events: _Events, fields: GenerationFields, writer: AnswerWriter
) -> AsyncGenerator[Answer, None]:
    """Yields the chunks of all choices; `held` are the events that came before."""
    continuous = fields.stream_options.continuous_usage_stats
    async for output, event in _chained(held, events):
        output.add(event)
        if isinstance(event, Started):
            chunk = writer.opening(output)
        elif isinstance(event, TextRound):
            chunk = writer.piece(output, event)
        else:
            chunk = writer.closing(output)
        if chunk is not None:
            if continuous:
                chunk.usage = Usage.of(len(output.prompt_token_ids), len(output.token_ids))
            yield chunk


async def _chained(held: list[_Event], events: _Events) -> _Events:
    for one in held:
        yield one
    async for one in events:
        yield one


def _usage(outputs: Sequence[ChoiceOutput], fields: GenerationFields) -> Usage:
    prompts = outputs[:: fields.n]
    return Usage.of(
        sum(len(one.prompt_token_ids) for one in prompts),
        sum(one.summary.completion_tokens for one in outputs),
        sum(one.summary.cached_prompt_tokens for one in prompts),
    )


def _choice(request: ValidRequest, number: int) -> ValidRequest:
    """Returns the request of one of n outputs: each draws with a seed of its own."""
    seed = request.generation.seed
    if number == 0 or seed is None:
        return request
    generation = dataclasses.replace(request.generation, seed=choice_seed(seed, number))
    return dataclasses.replace(request, generation=generation)
