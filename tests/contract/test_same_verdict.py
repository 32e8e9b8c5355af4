"""gRPC and HTTP judge alike: every limit at one less, at the limit, and at one more."""

import json
import math
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import httpx
import pytest
from prometheus_client import CollectorRegistry
from tests.contract.scripted_generator import ScriptedGenerator
from tests.unit.api.tokenizers import byte_level_tokenizer

from arborist.common.errors import error_from_call
from arborist.core.errors import ArboristError
from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.generation_servicer import GenerationServicer
from arborist.orchestrator.api.http import create_http_app
from arborist.orchestrator.api.validator import RequestLimits
from arborist.v1 import generation_pb2 as pb
from arborist.v1 import generation_pb2_grpc as pb_grpc

LIMITS = RequestLimits(max_prompt_tokens=50, max_max_tokens=80, max_depth=6, max_top_k=8)
SAMPLING = {one.name for one in pb.Sampling.DESCRIPTOR.fields}

# Field as both doors call it, then values that pass and values that do not.
NUMBERS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "max_tokens": ((1, 2, 79, 80), (-1, 0, 81)),
    "temperature": ((0, 1e-6, 99.999, 100), (-1e-9, 9e-7, 100.001, math.nan, math.inf)),
    "top_k": ((0, 1, 2**31 - 1), (-1,)),
    "top_p": ((1e-9, 0.999, 1), (0, 1.0000001, -0.1, math.nan)),
    "min_p": ((0, 0.5, 1), (-1e-9, 1.0000001, math.nan)),
    "seed": ((0, 1, 2**64 - 1), ()),
    "presence_penalty": ((-2, 0, 2), (-2.001, 2.001, math.nan, -math.inf)),
    "frequency_penalty": ((-2, 0, 2), (-2.001, 2.001, math.nan, math.inf)),
    "repetition_penalty": ((0.01, 1, 2), (0.009, -1, 2.001, math.nan)),
    "logprobs": ((0, 1, 19, 20), (-1, 21)),
    "min_tokens": ((0, 1, 49, 50), (-1, 51)),
    "stop_token_ids": (([], [265], [1] * 63, [1] * 64), ([1] * 65, [266], [-1])),
    "stop": ((["a"] * 3, ["a"] * 4, ["a" * 63], ["a" * 64]), (["a"] * 5, [""], ["a" * 65])),
    "logit_bias": (
        ({}, {0: 99.5}, {265: -100}, dict.fromkeys(range(266), 100)),
        ({266: 1}, {1: 100.5}, {1: -100.5}, {1: math.nan}),
    ),
    "prompt": (([0], [265], [1] * 49, [1] * 50), ([], [266], [-1], [1] * 51)),
    "speculation.depth": ((1, 5, 6), (0, 7, -1)),
    "speculation.top_k": ((1, 7, 8), (0, 9)),
    "speculation.num_draft_tokens": ((1, 255, 256), (0, 257)),
    "speculation.policy": (("chain", "eagle2"), ("", "medusa")),
    "speculation.enabled": ((True, False), ()),
    "ignore_eos": ((True, False), ()),
    "model": (("", "tiny"), ("other",)),
}
CASES = [
    pytest.param(name, value, passes, id=f"{name}={str(value)[:20]}")
    for name, (good, bad) in NUMBERS.items()
    for passes, values in ((True, good), (False, bad))
    for value in values
]


def http_body(name: str, value: Any) -> dict[str, Any]:
    """The request as JSON."""
    body: dict[str, Any] = {"prompt": [1, 2], "max_tokens": 50}
    group, _, field = name.rpartition(".")
    if group:
        return {**body, group: {field: value}}
    if name == "logit_bias":
        value = {str(token): bias for token, bias in value.items()}
    return {**body, name: value}


def grpc_message(name: str, value: Any) -> pb.GenerateRequest:
    """The same as a message."""
    message = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 2]), max_tokens=50)
    group, _, field = name.rpartition(".")
    holder = getattr(message, group) if group else message
    if not group and name in SAMPLING:
        holder = message.sampling
    if name == "prompt":
        message.token_ids.ids[:] = value
    elif isinstance(value, dict):
        getattr(holder, field).update(value)
    elif isinstance(value, list):
        getattr(holder, field)[:] = value
    else:
        setattr(holder, field, value)
    return message


class Doors:
    """One controller behind both."""

    def __init__(self, stub: Any, client: httpx.AsyncClient) -> None:
        self.stub, self.client = stub, client

    async def over_grpc(self, message: pb.GenerateRequest) -> ArboristError | None:
        """What gRPC says."""
        try:
            async for _ in self.stub.Generate(message):
                pass
        except grpc.aio.AioRpcError as error:
            return error_from_call(error)
        return None

    async def over_http(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """What HTTP says."""
        response = await self.client.post("/v1/completions", content=json.dumps(body))
        assert response.status_code in (200, 400, 404)
        error: dict[str, Any] | None = response.json().get("error")
        return error


def agree(
    over_grpc: ArboristError | None, over_http: dict[str, Any] | None, *, passes: bool
) -> None:
    """Checks that both doors gave the verdict, for the same reason."""
    if passes:
        assert (over_grpc, over_http) == (None, None)
        return
    assert over_grpc is not None
    assert over_http is not None
    assert over_http["code"] == over_grpc.reason


@pytest.fixture
async def doors() -> AsyncIterator[Doors]:
    """Both doors of a scripted controller."""
    completions = Completions(ScriptedGenerator(), byte_level_tokenizer(), LIMITS)
    server = grpc.aio.server()
    pb_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(completions), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    transport = httpx.ASGITransport(create_http_app(completions, CollectorRegistry()))
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield Doors(pb_grpc.GenerationServiceStub(channel), client)
    await server.stop(None)


@pytest.mark.parametrize(("name", "value", "passes"), CASES)
async def test_both_doors_say_the_same(doors: Doors, name: str, value: Any, passes: bool) -> None:
    """Accepted by both, or refused by both with the same reason, field and words."""
    over_grpc = await doors.over_grpc(grpc_message(name, value))
    over_http = await doors.over_http(http_body(name, value))

    agree(over_grpc, over_http, passes=passes)
    if over_grpc is None or over_http is None:
        return
    # HTTP has one name for prompts of all kinds.
    assert over_http["message"] == re.sub("^token_ids", "prompt", over_grpc.message)
    assert over_http["param"].startswith(name)
