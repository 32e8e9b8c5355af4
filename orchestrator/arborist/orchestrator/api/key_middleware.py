"""API keys at the HTTP door: every path but health and metrics needs one."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from arborist.core.errors import UnauthenticatedError
from arborist.orchestrator.api.doorkeeper import Doorkeeper
from arborist.orchestrator.api.error_response import error_response

OPEN_PATHS = ("/health", "/metrics")
"""What probes and scrapers ask for; neither has data of anybody's requests."""

_CLIENT = "arborist.client"
_POLICY_VIOLATION = 1008


class KeyMiddleware:
    """Refuses requests before their body is read, and notes whose the others are."""

    def __init__(self, app: ASGIApp, doorkeeper: Doorkeeper) -> None:
        """Takes the application behind it and who knows the keys."""
        self._app = app
        self._doorkeeper = doorkeeper

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers 401."""
        if scope["type"] == "websocket":  # There are none: what is not foreseen is refused.
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        if scope["type"] == "http" and _path(scope) not in OPEN_PATHS:
            host, _ = scope.get("client") or ("", 0)
            # The first header of a name counts, as it does for a proxy that checks keys.
            headers = reversed(Headers(scope=scope).items())
            try:
                scope[_CLIENT] = self._doorkeeper.admit(headers, f"{host}:0")
            except UnauthenticatedError as error:
                self._doorkeeper.note_refusal("http")
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def client_of(scope: Scope) -> str:
    """Returns whose request it is, as the middleware noted."""
    return str(scope[_CLIENT])


def _path(scope: Scope) -> str:
    """Returns the path below where the application is mounted."""
    return str(scope["path"]).removeprefix(scope.get("root_path", "").rstrip("/"))
