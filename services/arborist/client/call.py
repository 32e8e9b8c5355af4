"""What sync and async calls have in common: options, metadata, errors."""

from __future__ import annotations

import grpc
import grpc.aio

from arborist.common.errors import error_from_call
from arborist.core.errors import ArboristError, InvalidArgumentError, UnavailableError

DEFAULT_ADDRESS = "127.0.0.1:9000"
# A round is small; a message with a whole output's worth of tokens still fits.
_MAX_MESSAGE_BYTES = 16 << 20
_LOOPBACK = ("127.", "localhost:", "[::1]:", "unix:")
_DETAILS = "grpc-status-details-bin"


def channel_options(address: str) -> list[tuple[str, int]]:
    """Returns the options of a channel.

    Args:
        address: Where it goes; what is on this machine is never reached through an HTTP proxy.
    """
    options = [("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES)]
    if address.startswith(_LOOPBACK):
        options.append(("grpc.enable_http_proxy", 0))
    return options


def key_metadata(api_key: str | None) -> tuple[tuple[str, str], ...]:
    """Returns what every call of a client carries.

    Args:
        api_key: Printable ASCII; None = none.
    Raises:
        InvalidArgumentError: No metadata can carry it; the message does not repeat it.
    """
    if api_key is None:
        return ()
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise InvalidArgumentError(
            "api_key", f"{len(api_key)} characters", "printable ASCII without spaces, not empty"
        )
    return (("authorization", f"Bearer {api_key}"),)


def call_metadata(
    key: tuple[tuple[str, str], ...], traceparent: str | None
) -> tuple[tuple[str, str], ...]:
    """Returns the metadata of a call.

    Args:
        key: Of its client, as `key_metadata` gives it.
        traceparent: W3C trace context of the caller's span; None = none.
    """
    return (*key, ("traceparent", traceparent)) if traceparent else key


def client_error(error: grpc.RpcError, address: str, *, begun: bool = False) -> ArboristError:
    """Returns what a failed call means to a user.

    Args:
        error: What the stub raised.
        address: Where the call went.
        begun: Whether the server had answered before.
    Returns:
        The very error of the server; or one that says how to reach a server, when nobody answered.
    """
    restored = error_from_call(error)
    if isinstance(restored, UnavailableError) and not _has_details(error):
        if begun:
            return UnavailableError(f"the connection to the server at {address} was lost")
        return UnavailableError(
            f"no server answers at {address}: start one with `arborist serve`, or give its address"
        )
    return restored


def _has_details(error: grpc.RpcError) -> bool:
    if not isinstance(error, (grpc.Call, grpc.aio.AioRpcError)):
        return False
    return any(key == _DETAILS for key, _ in error.trailing_metadata() or ())
