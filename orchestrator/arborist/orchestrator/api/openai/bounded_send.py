"""Writing to a client that may have stopped reading."""

from __future__ import annotations

import asyncio

from starlette.types import Message, Send


class SlowReaderError(Exception):
    """The client took nothing for too long."""


def bounded_send(send: Send, timeout_s: float) -> Send:
    """Returns a `send` that does not wait for ever.

    Args:
        send: Of the request; returns once the client's side has room.
        timeout_s: Longest wait for room, in seconds; after it SlowReaderError is raised.
    """

    async def bounded(message: Message) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await send(message)
        except TimeoutError:
            raise SlowReaderError from None

    return bounded
