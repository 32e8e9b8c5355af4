"""The HTTP door: health, models, error bodies."""

from importlib.metadata import version

import pytest
from prometheus_client import CollectorRegistry, Counter
from tests.contract.scripted_generator import ScriptedGenerator
from tests.unit.api.http_app import client_of

from arborist.core.errors import ResourceExhaustedError, UnavailableError


async def test_health_follows_the_controller() -> None:
    """503 until a request would find a target, and again when the controller drains."""
    generator = ScriptedGenerator(ready=False)
    async with client_of(generator) as client:
        before = await client.get("/health")
        generator.ready = True
        ready = await client.get("/health")
        generator.ready = False
        draining = await client.get("/health")

    assert [one.status_code for one in (before, ready, draining)] == [503, 200, 503]


async def test_models_have_openais_shape() -> None:
    """A list of model objects; one by its name."""
    async with client_of(ScriptedGenerator()) as client:
        listed = (await client.get("/v1/models")).json()
        one = (await client.get("/v1/models/tiny")).json()

    model = {
        "id": "tiny",
        "object": "model",
        "created": 7,
        "owned_by": "arborist",
        "max_model_len": 100,
        "vocab_size": 266,
    }
    assert listed == {"object": "list", "data": [model]}
    assert one == model


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/models/other", 404, "UNKNOWN_MODEL"),
        ("GET", "/nowhere", 404, "NOT_FOUND"),
        ("POST", "/v1/models", 405, "METHOD_NOT_ALLOWED"),
    ],
)
async def test_errors_have_openais_shape(method: str, path: str, status: int, code: str) -> None:
    """Every refusal carries message, type, param and code."""
    async with client_of(ScriptedGenerator()) as client:
        response = await client.request(method, path)

    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["type"]) == (code, "invalid_request_error")


@pytest.mark.parametrize(
    ("raised", "status", "retry_after"),
    [
        (ResourceExhaustedError("full", retry_after_ms=1500), 429, "2"),
        (UnavailableError("the server stops"), 503, None),
    ],
)
async def test_our_errors_keep_message_and_advice(
    raised: Exception, status: int, retry_after: str | None
) -> None:
    """Status by the code's meaning; Retry-After in whole seconds, rounded up."""

    class Failing(ScriptedGenerator):
        def models(self):
            raise raised

    async with client_of(Failing()) as client:
        response = await client.get("/v1/models")

    assert response.status_code == status
    assert response.json()["error"]["message"] == str(raised)
    assert response.headers.get("Retry-After") == retry_after


async def test_unexpected_errors_say_nothing_but_an_incident() -> None:
    """The exception's text stays in the log."""

    class Failing(ScriptedGenerator):
        def models(self):
            raise RuntimeError("secret path")

    async with client_of(Failing()) as client:
        response = await client.get("/v1/models")

    assert response.status_code == 500
    assert "secret" not in response.text
    assert "incident" in response.json()["error"]["message"]


async def test_metrics_and_version_are_shown() -> None:
    """The controller's own series, and the version that is installed."""
    registry = CollectorRegistry()
    Counter("arborist_things", "Things.", registry=registry).inc(3)
    async with client_of(ScriptedGenerator(), registry=registry) as client:
        metrics = await client.get("/metrics")
        shown = await client.get("/version")

    assert "arborist_things_total 3.0" in metrics.text
    assert metrics.headers["content-type"].startswith("text/plain")
    assert shown.json() == {"version": version("arborist")}
