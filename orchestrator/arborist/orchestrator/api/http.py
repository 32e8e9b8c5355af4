"""The HTTP door: the API of OpenAI's clients, health, metrics."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from arborist.core.errors import UnknownModelError
from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.doorkeeper import Doorkeeper
from arborist.orchestrator.api.error_response import add_error_handlers
from arborist.orchestrator.api.key_middleware import KeyMiddleware
from arborist.orchestrator.api.openai.answer import AnswerHead, AnswerWriter
from arborist.orchestrator.api.openai.chat_answer import ChatWriter
from arborist.orchestrator.api.openai.chat_request import ChatRequest
from arborist.orchestrator.api.openai.completion_answer import CompletionWriter
from arborist.orchestrator.api.openai.completion_request import CompletionRequest
from arborist.orchestrator.api.openai.generation_endpoint import GenerationEndpoint
from arborist.orchestrator.api.openai.generation_fields import GenerationFields
from arborist.orchestrator.api.openai.http_limits import HttpLimits
from arborist.orchestrator.api.openai.token_label import TokenLabels
from arborist.orchestrator.api.openai.tokenization import Tokenization
from arborist.orchestrator.generation import Generator, ServedModel

_OWNER = "arborist"


def create_http_app(
    completions: Completions,
    registry: CollectorRegistry,
    limits: HttpLimits | None = None,
    doorkeeper: Doorkeeper | None = None,
) -> FastAPI:
    """Builds the HTTP API of one controller.

    Args:
        completions: Where requests run; gRPC has the same one.
        registry: What `/metrics` shows.
        limits: What bounds a request; None = defaults.
        doorkeeper: Who may come in; None = everybody.
    Returns:
        An application with `/v1/models`, `/v1/completions`, `/v1/chat/completions`, `/tokenize`,
        `/detokenize`, `/health` (200 once a request would find a target, else 503), `/metrics`
        and `/version`.
    """
    app = FastAPI(title="Arborist", docs_url=None, redoc_url=None, openapi_url=None)
    add_error_handlers(app)
    app.add_middleware(KeyMiddleware, doorkeeper=doorkeeper or Doorkeeper())
    _add_models(app, completions.generator)
    _add_generation(app, completions, limits or HttpLimits())
    _add_state(app, completions.generator, registry)
    return app


def _add_models(app: FastAPI, controller: Generator) -> None:
    @app.get("/v1/models")
    async def list_models() -> JSONResponse:
        data = [_model_object(model) for model in controller.models()]
        return JSONResponse({"object": "list", "data": data})

    @app.get("/v1/models/{model_id:path}")
    async def get_model(model_id: str) -> JSONResponse:
        for model in controller.models():
            if model.id == model_id:
                return JSONResponse(_model_object(model))
        raise UnknownModelError(
            "no such model is served; GET /v1/models lists those that are",
            metadata={"field": "model"},
        )


def _add_generation(app: FastAPI, completions: Completions, limits: HttpLimits) -> None:
    def add(
        path: str,
        read: Callable[[bytes], GenerationFields],
        writer: Callable[[AnswerHead, GenerationFields, TokenLabels], AnswerWriter],
    ) -> None:
        # An ASGI application of its own, not a handler: see there.
        endpoint = GenerationEndpoint(read, writer, completions, limits)
        app.router.add_route(path, endpoint, methods=["POST"])  # type: ignore[arg-type]

    add("/v1/completions", CompletionRequest.read, CompletionWriter)
    add("/v1/chat/completions", ChatRequest.read, ChatWriter)
    tokenization = Tokenization(completions, limits)
    app.router.add_route("/tokenize", tokenization.tokenize, methods=["POST"])
    app.router.add_route("/detokenize", tokenization.detokenize, methods=["POST"])


def _add_state(app: FastAPI, controller: Generator, registry: CollectorRegistry) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        if controller.ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready"}, HTTPStatus.SERVICE_UNAVAILABLE)

    @app.get("/metrics")
    async def metrics() -> Response:
        page = generate_latest(registry)
        return Response(page, headers={"Content-Type": CONTENT_TYPE_LATEST})

    @app.get("/version")
    async def show_version() -> JSONResponse:
        return JSONResponse({"version": version("arborist")})


def _model_object(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": model.created_s,
        "owned_by": _OWNER,
        "max_model_len": model.context_length,
        "vocab_size": model.vocab_size,
    }
