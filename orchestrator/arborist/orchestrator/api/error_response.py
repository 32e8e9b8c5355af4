"""Errors over HTTP: one table of statuses, bodies as OpenAI's clients expect them."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from arborist.common.errors import internal_error
from arborist.core.errors import (
    ArboristError,
    ErrorCode,
    RequestTooLargeError,
    UnauthenticatedError,
    UnknownModelError,
)

_STATUS = {
    ErrorCode.CANCELLED: 499,
    ErrorCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    ErrorCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    ErrorCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    ErrorCode.ABORTED: HTTPStatus.CONFLICT,
    ErrorCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    ErrorCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
}
# Where HTTP is more precise than the canonical code.
_STATUS_OF_REASON = {
    RequestTooLargeError.reason: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UnknownModelError.reason: HTTPStatus.NOT_FOUND,
}
_INVALID = "invalid_request_error"
_KINDS: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}

_log = logging.getLogger(__name__)


def add_error_handlers(app: FastAPI) -> None:
    """Makes every error of an application an error body."""
    app.add_exception_handler(ArboristError, _on_arborist_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_unexpected)


def error_body(error: ArboristError) -> dict[str, Any]:
    """Returns the body of an error: `{"error": {"message", "type", "param", "code"}}`."""
    return _body(
        _status(error), error.message, error.reason, param=error.metadata.get("field") or None
    )


def error_response(error: ArboristError) -> JSONResponse:
    """Returns body, status, and when to retry in whole seconds if there is such advice."""
    headers = {}
    if error.retry_after_ms > 0:
        headers["Retry-After"] = str(-(-error.retry_after_ms // 1000))
    if isinstance(error, UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RequestTooLargeError | UnauthenticatedError):
        # The rest of the body is still on its way, and nobody will read it.
        headers["Connection"] = "close"
    return JSONResponse(error_body(error), _status(error), headers)


def unexpected_error(error: Exception) -> ArboristError:
    """Logs an exception nobody expected; returns what a client may know of it."""
    shown = internal_error()
    _log.error("http request failed: %s", shown.message, exc_info=error)
    return shown


def _status(error: ArboristError) -> int:
    return _STATUS_OF_REASON.get(error.reason, _STATUS[error.code])


def _body(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    default = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else _INVALID
    kind = _KINDS.get(status, default)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def _on_arborist_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, ArboristError):
        return await _on_unexpected(request, error)
    return error_response(error)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.BAD_REQUEST
    phrase = HTTPStatus(status).phrase
    message = f"{request.method}: {phrase.lower()}"
    return JSONResponse(_body(status, message, phrase.upper().replace(" ", "_")), status)


async def _on_unexpected(request: Request, error: Exception) -> JSONResponse:
    return error_response(unexpected_error(error))
