"""What sync and async calls have in common: options, metadata, errors."""

from __future__ import annotations

import grpc
import grpc.aio

from arborist.common.errors import error_from_call
from arborist.core.errors import ArboristError, UnavailableError

DEFAULT_ADDRESS = "127.0.0.1:9000"
# A round is small; a message with a whole output's worth of tokens still fits.
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", 16 << 20),)
_DETAILS = "grpc-status-details-bin"


def call_metadata(traceparent: str | None) -> tuple[tuple[str, str], ...]:
    """Returns the metadata of a call.

    Args:
        traceparent: W3C trace context of the caller's span; None = none.
    """
    return (("traceparent", traceparent),) if traceparent else ()


def client_error(error: grpc.RpcError, address: str) -> ArboristError:
    """Returns what a failed call means to a user.

    Args:
        error: What the stub raised.
        address: Where the call went.
    Returns:
        The very error of the server; or one that says how to reach a server, when nobody answered.
    """
    restored = error_from_call(error)
    if isinstance(restored, UnavailableError) and not _has_details(error):
        return UnavailableError(
            f"no server answers at {address}: start one with `arborist serve`, or give its address"
        )
    return restored


def _has_details(error: grpc.RpcError) -> bool:
    if not isinstance(error, (grpc.Call, grpc.aio.AioRpcError)):
        return False
    return any(key == _DETAILS for key, _ in error.trailing_metadata() or ())
