"""The HTTP API over a scripted controller, without a socket."""

import json
from collections.abc import Iterable
from typing import Any

import httpx
from prometheus_client import CollectorRegistry
from tests.contract.scripted_generator import ScriptedGenerator
from tests.unit.api.tokenizers import byte_level_tokenizer

from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.http import create_http_app
from arborist.orchestrator.api.openai.http_limits import HttpLimits
from arborist.orchestrator.api.tokenizer import Tokenizer
from arborist.orchestrator.api.validator import RequestLimits

TOKENIZER = byte_level_tokenizer()
LIMITS = RequestLimits(max_max_tokens=80, max_depth=6, max_n=3, max_prompts=4)


def app_of(
    generator: ScriptedGenerator,
    *,
    tokenizer: Tokenizer | None = TOKENIZER,
    registry: CollectorRegistry | None = None,
    limits: HttpLimits | None = None,
) -> Any:
    """The application."""
    completions = Completions(generator, tokenizer, LIMITS)
    return create_http_app(completions, registry or CollectorRegistry(), limits)


def client_of(generator: ScriptedGenerator, **options: Any) -> httpx.AsyncClient:
    """A client of the application."""
    transport = httpx.ASGITransport(app_of(generator, **options), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def spoken(texts: Iterable[str]) -> list[list[int]]:
    """Rounds that say these texts."""
    return [TOKENIZER.encode(text) for text in texts]


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The objects of a stream that ended as it should."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *parts, end, rest = response.text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    return [json.loads(one.removeprefix("data: ")) for one in parts]
