"""The HTTP door: health and models, with errors as OpenAI's clients expect them."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from arborist.common.errors import internal_error
from arborist.core.errors import ArboristError, ErrorCode
from arborist.orchestrator.generation import Generator, ServedModel

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
_OWNER = "arborist"

_log = logging.getLogger(__name__)


def create_http_app(controller: Generator) -> FastAPI:
    """Builds the HTTP API of one controller.

    Args:
        controller: What answers; asked on every request.
    Returns:
        An application with `/health` (200 once a request would find a target, else 503) and
        `/v1/models`.
    """
    app = FastAPI(title="Arborist", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(ArboristError, _on_arborist_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(Exception, _on_unexpected)

    @app.get("/health")
    async def health() -> JSONResponse:
        if controller.ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready"}, HTTPStatus.SERVICE_UNAVAILABLE)

    @app.get("/v1/models")
    async def list_models() -> JSONResponse:
        data = [_model_object(model) for model in controller.models()]
        return JSONResponse({"object": "list", "data": data})

    @app.get("/v1/models/{model_id:path}")
    async def get_model(model_id: str) -> JSONResponse:
        for model in controller.models():
            if model.id == model_id:
                return JSONResponse(_model_object(model))
        return error_response(
            HTTPStatus.NOT_FOUND,
            "no such model is served; GET /v1/models lists those that are",
            "UNKNOWN_MODEL",
            param="model",
        )

    return app


def error_response(
    status: int, message: str, code: str, *, param: str | None = None, retry_after_ms: int = 0
) -> JSONResponse:
    """Returns an error body as OpenAI's API has it.

    Args:
        status: HTTP status.
        message: One line for people.
        code: Machine-readable reason.
        param: Field that is wrong, if it is one.
        retry_after_ms: Advice when to retry; 0 = none.
    """
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "rate_limit_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    # Retry-After counts whole seconds.
    headers = {"Retry-After": str(-(-retry_after_ms // 1000))} if retry_after_ms > 0 else None
    return JSONResponse(body, status, headers)


def _model_object(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": model.created_s,
        "owned_by": _OWNER,
        "max_model_len": model.context_length,
    }


async def _on_arborist_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, ArboristError):
        return await _on_unexpected(request, error)
    return error_response(
        _STATUS[error.code],
        error.message,
        error.reason,
        param=error.metadata.get("field"),
        retry_after_ms=error.retry_after_ms,
    )


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.BAD_REQUEST
    phrase = HTTPStatus(status).phrase
    return error_response(
        status, f"{request.method}: {phrase.lower()}", phrase.upper().replace(" ", "_")
    )


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    field = ".".join(str(part) for part in first.get("loc", ())[1:]) or None
    return error_response(
        HTTPStatus.BAD_REQUEST,
        f"{field or 'body'}: {first.get('msg', 'is not valid')}",
        "INVALID_ARGUMENT",
        param=field,
    )


async def _on_unexpected(request: Request, error: Exception) -> JSONResponse:
    shown = internal_error()
    _log.error("http request failed: %s", shown.message, exc_info=error)
    return error_response(HTTPStatus.INTERNAL_SERVER_ERROR, shown.message, shown.reason)
