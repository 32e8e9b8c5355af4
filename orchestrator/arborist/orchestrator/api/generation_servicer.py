"""`GenerationService`: the public gRPC door."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import grpc.aio

from arborist.common.errors import grpc_status, internal_error
from arborist.core.errors import ArboristError, DeadlineError
from arborist.orchestrator.api.completion import stream_completion
from arborist.orchestrator.api.generation_wire import read_request, write_event, write_models
from arborist.orchestrator.api.incoming import ChatPrompt, IncomingRequest, TextPrompt
from arborist.orchestrator.api.tokenizer import Tokenizer
from arborist.orchestrator.api.validator import RequestLimits, Validator, ValidRequest
from arborist.orchestrator.generation import Generator
from arborist.v1 import generation_pb2 as pb
from arborist.v1 import generation_pb2_grpc as pb_grpc

# Tokenising more text than this may take longer than a round of the other sessions.
_MAX_INLINE_CHARACTERS = 8192

_log = logging.getLogger(__name__)


class GenerationServicer(pb_grpc.GenerationServiceServicer):
    """Serves clients from one controller."""

    def __init__(
        self, generator: Generator, tokenizer: Tokenizer | None, limits: RequestLimits
    ) -> None:
        """Prepares the service.

        Args:
            generator: The controller.
            tokenizer: Of the model served; None = it takes and gives token ids only.
            limits: What requests may ask for.
        """
        self._generator = generator
        self._tokenizer = tokenizer
        self._validator = Validator(limits, tokenizer)

    # Coroutines, where the stubs foresee generators: a handler that writes its messages itself is
    # cancelled where it stands, so that `finally` frees the session at once; a generator would be
    # left suspended until it is collected.
    async def Generate(  # type: ignore[override]  # noqa: N802 - the contract's name
        self,
        request: pb.GenerateRequest,
        context: grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse],
    ) -> None:
        """Streams Started, one Round per round, Summary.

        Cancellation and a passed deadline end the generation before its next round.
        """
        try:
            async with asyncio.timeout(context.time_remaining()):
                await self._generate(request, context)
        except TimeoutError:
            await _abort(context, DeadlineError("the request outlived its deadline"))
        except ArboristError as error:
            await _abort(context, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets one line
            await _abort(context, _unexpected(error))

    async def ListModels(  # noqa: N802 - the contract's name
        self,
        request: pb.ListModelsRequest,
        context: grpc.aio.ServicerContext[pb.ListModelsRequest, pb.ListModelsResponse],
    ) -> pb.ListModelsResponse:
        """Names the models served."""
        return write_models(self._generator.models())

    async def _generate(
        self,
        message: pb.GenerateRequest,
        context: grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse],
    ) -> None:
        request = await self._validate(read_request(message, _traceparent(context)))
        generation = self._generator.generate(request.generation)
        events = stream_completion(generation, request, self._tokenizer)
        async with aclosing(events):
            async for event in events:
                await context.write(write_event(event))

    async def _validate(self, request: IncomingRequest) -> ValidRequest:
        models = self._generator.models()
        if _num_characters(request) <= _MAX_INLINE_CHARACTERS:
            return self._validator.validate(request, models)
        return await asyncio.to_thread(self._validator.validate, request, models)


def _num_characters(request: IncomingRequest) -> int:
    if isinstance(request.prompt, TextPrompt):
        return len(request.prompt.text)
    if isinstance(request.prompt, ChatPrompt):
        return sum(len(turn.content) for turn in request.prompt.turns)
    return 0


def _traceparent(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent" and isinstance(value, str):
            return value
    return ""


def _unexpected(error: Exception) -> ArboristError:
    shown = internal_error()
    _log.error("generate failed: %s", shown.message, exc_info=error)
    return shown


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: ArboristError) -> NoReturn:
    await context.abort_with_status(grpc_status(error))
    raise error  # Unreachable: abort raises.
