"""API keys at the gRPC door: every method but health needs one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health

from arborist.common.errors import grpc_status
from arborist.core.errors import UnauthenticatedError
from arborist.orchestrator.api.doorkeeper import Doorkeeper

_OPEN = f"/{health.SERVICE_NAME}/"


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls before anything of their request is read."""

    def __init__(self, doorkeeper: Doorkeeper) -> None:
        """Takes who knows the keys."""
        self._doorkeeper = doorkeeper

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Returns the method's handler, or one that refuses; reflection is a method like others."""
        if not handler_call_details.method.startswith(_OPEN):
            try:
                self._doorkeeper.admit(handler_call_details.invocation_metadata or (), "")
            except UnauthenticatedError as error:
                self._doorkeeper.note_refusal("grpc")
                return _refusal(error)
        return await continuation(handler_call_details)


def _refusal(error: UnauthenticatedError) -> Any:
    async def refuse(
        _: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        await context.abort_with_status(grpc_status(error))

    # Whatever the method's kind: this one waits for no message.
    return grpc.stream_stream_rpc_method_handler(refuse)
