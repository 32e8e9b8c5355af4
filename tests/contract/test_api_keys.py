"""API keys at both doors of one controller: what needs one, and who is let in."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry
from tests.contract.scripted_generator import ScriptedGenerator
from tests.unit.api.tokenizers import byte_level_tokenizer

from arborist.client import AsyncClient, Client
from arborist.common.api_key import ApiKey, key_digest, new_api_key
from arborist.common.server import RpcServer
from arborist.core.errors import InvalidArgumentError, UnauthenticatedError
from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.doorkeeper import Doorkeeper
from arborist.orchestrator.api.generation_servicer import GenerationServicer
from arborist.orchestrator.api.http import create_http_app
from arborist.orchestrator.api.key_interceptor import KeyInterceptor
from arborist.orchestrator.api.key_middleware import OPEN_PATHS
from arborist.orchestrator.api.validator import RequestLimits
from arborist.v1 import generation_pb2 as pb
from arborist.v1 import generation_pb2_grpc as pb_grpc

KEY = new_api_key()
BODY = {"prompt": [1, 2], "max_tokens": 5}
SERVICE: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["GenerationService"]


@dataclass(frozen=True)
class Doors:
    """Both doors: the gRPC address, the HTTP application, and what gets through."""

    address: str
    app: Any
    generator: ScriptedGenerator
    refused: list[str]

    def http(self, key: str | None = None) -> httpx.AsyncClient:
        """A client of the HTTP door."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        transport = httpx.ASGITransport(self.app)
        return httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)


@pytest.fixture
async def doors() -> AsyncIterator[Doors]:
    """A controller whose only key is KEY."""
    generator = ScriptedGenerator()
    refused: list[str] = []
    keys = [ApiKey("alice", key_digest(KEY.encode()))]
    doorkeeper = Doorkeeper(keys, count_refusal=refused.append)
    completions = Completions(generator, byte_level_tokenizer(), RequestLimits(max_max_tokens=80))
    server = RpcServer([SERVICE.full_name], interceptors=[KeyInterceptor(doorkeeper)])
    servicer = GenerationServicer(completions, doorkeeper=doorkeeper)
    pb_grpc.add_GenerationServiceServicer_to_server(servicer, server.grpc_server)
    address = await server.start("127.0.0.1", 0)
    await server.set_serving(True)
    app = create_http_app(completions, CollectorRegistry(), doorkeeper=doorkeeper)
    yield Doors(address, app, generator, refused)
    await server.stop(0)


async def test_every_path_but_health_and_metrics_needs_a_key(doors: Doors) -> None:
    """Whatever routes there are, and paths that are none: 401 before anything is looked at."""
    paths = [(method, route.path) for route in doors.app.routes for method in route.methods]
    assert len(paths) >= 9
    async with doors.http() as client:
        for method, path in [*paths, ("GET", "/nowhere"), ("GET", "/health/"), ("GET", "//health")]:
            reply = await client.request(method, path.replace("{model_id:path}", "tiny"))
            if path in OPEN_PATHS:
                assert reply.status_code != 401, path
                continue
            assert reply.status_code == 401, path
            assert reply.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                error = reply.json()["error"]
                assert error["type"] == "authentication_error"
                assert error["code"] == "UNAUTHENTICATED"


async def test_refusals_are_counted_by_door(doors: Doors) -> None:
    """Once each, whatever was asked; what is open or let in does not count."""
    async with doors.http() as client:
        for path in ("/v1/models", "/nowhere", "/health"):
            await client.get(path)
    async with doors.http(KEY) as client:
        assert (await client.get("/v1/models")).status_code == 200
    async with (
        AsyncClient(doors.address) as stranger,
        AsyncClient(doors.address, api_key=KEY) as alice,
    ):
        with pytest.raises(UnauthenticatedError):
            await stranger.list_models()
        await alice.list_models()

    assert doors.refused == ["http", "http", "grpc"]


async def test_the_body_of_a_refused_request_is_not_read(doors: Doors) -> None:
    """Whoever has no key cannot make the server read; the connection is closed instead."""
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        raise AssertionError("the body was asked for")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "headers": [(b"authorization", b"Bearer \xff")],
        "client": ("10.0.0.1", 7),
    }
    await doors.app(scope, receive, send)

    assert sent[0]["status"] == 401
    assert (b"connection", b"close") in sent[0]["headers"]


async def test_every_method_but_health_needs_a_key(doors: Doors) -> None:
    """Those of the service, reflection, and methods that do not exist: UNAUTHENTICATED."""
    methods = [f"/{SERVICE.full_name}/{one.name}" for one in SERVICE.methods]
    assert len(methods) >= 2
    async with grpc.aio.insecure_channel(doors.address) as channel:
        for method in [*methods, "/arborist.v1.Nothing/AtAll"]:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(method)(b"")
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, method
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            # It is refused without a message from us.
            await asyncio.wait_for(reflection.read(), 10)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        health = health_pb2_grpc.HealthStub(channel)
        reply = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE.full_name))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_answers_with_a_key(doors: Doors) -> None:
    """As any other method."""
    metadata = (("authorization", f"Bearer {KEY}"),)
    async with grpc.aio.insecure_channel(doors.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(metadata=metadata)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        reply = await call.read()
    names = {one.name for one in reply.list_services_response.service}
    assert SERVICE.full_name in names


async def test_one_key_is_one_client_at_both_doors(doors: Doors) -> None:
    """By either header, over gRPC and HTTP: what is counted and shared by client is shared."""
    async with AsyncClient(doors.address, api_key=KEY) as client:
        await client.complete([1, 2], max_tokens=5)
        assert await client.list_models()
    async with doors.http(KEY) as http:
        assert (await http.post("/v1/completions", json=BODY)).status_code == 200
    async with doors.http() as http:
        reply = await http.post("/v1/completions", json=BODY, headers={"X-API-Key": KEY})
        assert reply.status_code == 200

    assert [one.client_key for one in doors.generator.requests] == ["key:alice"] * 3


@pytest.mark.parametrize("key", [None, "wrong" * 5])
async def test_the_sdk_says_that_a_key_is_needed(doors: Doors, key: str | None) -> None:
    """Both clients raise the error of the table, for streams and for single calls."""

    def blocking() -> None:
        with Client(doors.address, api_key=key) as client:
            with pytest.raises(UnauthenticatedError, match="API key"):
                client.list_models()
            with pytest.raises(UnauthenticatedError, match="API key"):
                client.complete([1, 2])

    await asyncio.to_thread(blocking)
    async with AsyncClient(doors.address, api_key=key) as client:
        with pytest.raises(UnauthenticatedError, match="API key"):
            await client.list_models()
        with pytest.raises(UnauthenticatedError, match="API key"):
            await client.complete([1, 2])
    assert doors.generator.requests == []


async def test_the_blocking_client_sends_its_key(doors: Doors) -> None:
    """With every call."""

    def ask() -> None:
        with Client(doors.address, api_key=KEY) as client:
            client.list_models()
            client.complete([1, 2], max_tokens=5, traceparent=f"00-{'a' * 32}-{'b' * 16}-01")

    await asyncio.to_thread(ask)

    assert [one.client_key for one in doors.generator.requests] == ["key:alice"]


@pytest.mark.parametrize("key", ["", "two words", "tab\there", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_refused_here(key: str) -> None:
    """Before any call, without repeating it."""
    with pytest.raises(InvalidArgumentError) as caught:
        Client("127.0.0.1:1", api_key=key)

    assert not key or key not in caught.value.message
