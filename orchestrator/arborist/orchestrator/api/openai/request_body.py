"""Reads a request's body, no further than its limit."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from arborist.core.errors import RequestTooLargeError
from arborist.orchestrator.api.metadata_size import check_metadata
from arborist.orchestrator.api.openai.http_limits import HttpLimits


async def read_body(scope: Scope, receive: Receive, limits: HttpLimits) -> bytes:
    """Returns the body of a request.

    Args:
        scope: Of the request.
        receive: Gives its messages.
        limits: How long it may be, and take.
    Raises:
        RequestTooLargeError: The headers are too long, or the body is, or says that it will be:
            then nothing is read.
        HTTPException: 408, it did not arrive in time.
        ClientDisconnect: The client left.
    """
    check_metadata(scope["headers"], limits.max_metadata_bytes)
    max_bytes = limits.max_request_bytes
    announced = Headers(scope=scope).get("content-length", "")
    if announced.isdecimal():
        # Compared by length first: a number may have any number of digits.
        digits = announced.lstrip("0")
        if len(digits) > len(str(max_bytes)) or int(digits or "0") > max_bytes:
            raise _too_large(f"{digits[:20]} bytes", max_bytes)
    try:
        async with asyncio.timeout(limits.client_timeout_s):
            return await _read(receive, max_bytes)
    except TimeoutError:
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT) from None


async def _read(receive: Receive, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part: bytes = message.get("body", b"")
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise _too_large(f"over {max_bytes} bytes", max_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(size: str, max_bytes: int) -> RequestTooLargeError:
    return RequestTooLargeError(
        "body", size, f"at most {max_bytes} bytes (controller.max_request_bytes)"
    )
