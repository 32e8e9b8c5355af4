"""Work for a client that may leave."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive


async def while_client_stays(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Runs work, and cancels it where it stands when the client leaves.

    Args:
        receive: Of a request whose body was read: its next message says that the client left.
        work: Something that frees what it holds when it is cancelled.
    Raises:
        Exception: What the work raised.
    """
    loop = asyncio.get_running_loop()
    working = loop.create_task(work, name="http-answer")
    watching = loop.create_task(_left(receive), name="http-client")
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
    if not working.cancelled():
        working.result()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
