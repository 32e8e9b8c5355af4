"""`GenerationService`: the public gRPC door."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import grpc.aio

from arborist.common.errors import grpc_status, internal_error
from arborist.core.errors import ArboristError, DeadlineError
from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.doorkeeper import Doorkeeper
from arborist.orchestrator.api.generation_wire import read_request, write_event, write_models
from arborist.orchestrator.api.metadata_size import MAX_METADATA_BYTES, check_metadata
from arborist.v1 import generation_pb2 as pb
from arborist.v1 import generation_pb2_grpc as pb_grpc

_log = logging.getLogger(__name__)


class GenerationServicer(pb_grpc.GenerationServiceServicer):
    """Serves clients from one controller."""

    def __init__(
        self,
        completions: Completions,
        client_timeout_s: float = 60.0,
        doorkeeper: Doorkeeper | None = None,
        max_metadata_bytes: int = MAX_METADATA_BYTES,
    ) -> None:
        """Prepares the service.

        Args:
            completions: Where requests run; HTTP has the same one.
            client_timeout_s: Longest wait for a client that does not read, in seconds.
            doorkeeper: Who may come in; None = everybody. `KeyInterceptor` keeps the others out;
                here it says whose a request is.
            max_metadata_bytes: Longest metadata, names and values together.
        """
        self._max_metadata_bytes = max_metadata_bytes
        self._completions = completions
        self._client_timeout_s = client_timeout_s
        self._doorkeeper = doorkeeper or Doorkeeper()

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
        return write_models(self._completions.generator.models())

    async def _generate(
        self,
        message: pb.GenerateRequest,
        context: grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse],
    ) -> None:
        metadata = context.invocation_metadata() or ()
        check_metadata(metadata, self._max_metadata_bytes)
        key = self._doorkeeper.admit(metadata, context.peer())
        asked = dataclasses.replace(read_request(message, _traceparent(context)), client_key=key)
        request = await self._completions.validate(asked)
        _, events = self._completions.start(request)
        async with aclosing(events):
            async for event in events:
                await self._write(context, write_event(event))

    async def _write(
        self,
        context: grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse],
        message: pb.GenerateResponse,
    ) -> None:
        try:
            async with asyncio.timeout(self._client_timeout_s):
                await context.write(message)
        except TimeoutError:
            limit_s = self._client_timeout_s
            raise DeadlineError(f"the client read nothing for {limit_s:g} s") from None


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
