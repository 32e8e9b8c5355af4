"""Server-sent events, written no faster than the client reads them."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel
from starlette.types import Send

_HEADERS = MappingProxyType(
    {
        b"content-type": b"text/event-stream; charset=utf-8",
        b"cache-control": b"no-cache",
        # Proxies in front of us hand on every event as it comes.
        b"x-accel-buffering": b"no",
    }
)


class EventStream:
    """Writes one response."""

    def __init__(self, send: Send) -> None:
        """Writes nothing yet.

        Args:
            send: Of the request; returns once the client's side has room.
        """
        self._send = send

    async def start(self) -> None:
        """Sends status and headers."""
        headers = list(_HEADERS.items())
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def event(self, model: BaseModel) -> None:
        """Sends an object."""
        await self._data(model.model_dump_json().encode())

    async def error(self, body: dict[str, Any]) -> None:
        """Sends an error's body, after which only `end` follows."""
        await self._data(json.dumps(body).encode())

    async def end(self) -> None:
        """Sends the end mark and ends the response."""
        await self._send(
            {"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False}
        )

    async def _data(self, data: bytes) -> None:
        body = b"data: " + data + b"\n\n"
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
