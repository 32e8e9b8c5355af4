"""What a port says of a service whose model still loads."""

from __future__ import annotations

from typing import Any

import grpc

from arborist.common.errors import grpc_status
from arborist.core.errors import UnavailableError


class LoadingGate(grpc.GenericRpcHandler):
    """Answers every call of a service with UNAVAILABLE until the service itself is there."""

    def __init__(self, service_name: str) -> None:
        """Makes a gate; add it to a server before the server starts.

        Args:
            service_name: Full name of the service.
        """
        self._prefix = f"/{service_name}/"
        self._loading = True

    def open(self) -> None:
        """Lets calls through; the service was added behind the gate."""
        self._loading = False

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Returns a handler that refuses, or None for what is not held back."""
        if not self._loading or not handler_call_details.method.startswith(self._prefix):
            return None
        # On the wire a unary call is a stream of one message: this refuses either.
        return grpc.stream_stream_rpc_method_handler(_refuse)


async def _refuse(requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort_with_status(grpc_status(UnavailableError("the model is still loading")))
