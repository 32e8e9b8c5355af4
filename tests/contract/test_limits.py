"""The table of limits, as configured by default: one less, the limit, one more, at both doors."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import httpx
import pytest
from prometheus_client import CollectorRegistry
from tests.contract.scripted_generator import ScriptedGeneration, ScriptedGenerator
from tests.contract.test_same_verdict import Doors, agree, grpc_message, http_body
from tests.integration.http_server import http_server
from tests.integration.loopback import until
from tests.unit.api.tokenizers import byte_level_tokenizer

from arborist.common.config import parse_config
from arborist.common.errors import error_from_call
from arborist.common.server import RpcServer
from arborist.core.errors import ArboristError, ErrorCode
from arborist.orchestrator.admission import Admission
from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.generation_servicer import GenerationServicer
from arborist.orchestrator.api.http import create_http_app
from arborist.orchestrator.api.openai.http_limits import HttpLimits
from arborist.orchestrator.api.validator import RequestLimits
from arborist.orchestrator.generation import GenerationRequest, ServedModel
from arborist.v1 import generation_pb2 as pb
from arborist.v1 import generation_pb2_grpc as pb_grpc

CONFIG = parse_config({})
KNOWN = CONFIG.controller
# A context that only the configuration bounds, and more tokens than there may be biases.
LARGE = ServedModel("tiny", 1 << 20, 4096, (0,), created_s=7, speculation=True)
SMALL = ServedModel("tiny", 2048, 4096, (0,), created_s=7, speculation=True)
FLOATS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


def schema(num_bytes: int) -> dict[str, Any]:
    """A schema whose text has so many bytes, half of them in letters of two."""
    room = num_bytes - len('{"title": ""}')
    return {"title": "x" * (room % 2) + "é" * (room // 2)}


def nested(depth: int) -> dict[str, Any]:
    """A schema with so many brackets inside each other."""
    value: Any = []
    for _ in range(depth - 2):
        value = [value]
    return {"enum": value}


# Field as both doors call it, then the limit, and what makes a value of some size.
ROWS: dict[str, tuple[str, int, Any]] = {
    "prompt": ("prompt", KNOWN.max_prompt_tokens, lambda size: [1] * size),
    "max_tokens": ("max_tokens", KNOWN.max_max_tokens, int),
    "stop strings": ("stop", KNOWN.max_stop_strings, lambda size: ["a"] * size),
    "stop bytes": (
        "stop",
        KNOWN.max_stop_bytes,
        lambda size: ["a" * (size % 2) + "é" * (size // 2)],
    ),
    "stop tokens": ("stop_token_ids", 64, lambda size: [1] * size),
    "logprobs": ("logprobs", 20, int),
    "biases": ("logit_bias", 300, lambda size: dict.fromkeys(range(size), 1.0)),
    "depth": ("speculation.depth", 16, int),
    "top_k": ("speculation.top_k", 32, int),
    "nodes": ("speculation.num_draft_tokens", 256, int),
    "min_tokens": ("min_tokens", 50, int),
    "token ids": ("prompt", LARGE.vocab_size - 1, lambda size: [size]),
    "schema bytes": ("response_format", KNOWN.max_schema_bytes, schema),
    "schema depth": ("response_format", KNOWN.max_schema_depth, nested),
}
TABLE = [
    pytest.param(field, make(limit + step), step <= 0, id=f"{name}{step:+d}")
    for name, (field, limit, make) in ROWS.items()
    for step in (-1, 0, 1)
]


def as_http(field: str, value: Any) -> dict[str, Any]:
    """The request as JSON; a schema is given as an object."""
    if field == "response_format":
        value = {"type": "json_schema", "json_schema": {"name": "a", "schema": value}}
    return http_body(field, value)


def as_grpc(field: str, value: Any) -> pb.GenerateRequest:
    """The request as a message; a schema is given as text."""
    if field != "response_format":
        return grpc_message(field, value)
    message = grpc_message("max_tokens", 50)
    message.response_format.json_schema = json.dumps(value, ensure_ascii=False)
    return message


@asynccontextmanager
async def open_doors(
    generator: ScriptedGenerator,
    *,
    limits: RequestLimits | None = None,
    max_bytes: int = KNOWN.max_request_bytes,
    max_metadata_bytes: int = KNOWN.max_metadata_bytes,
) -> AsyncIterator[Doors]:
    """Both doors of a generator on sockets of their own."""
    limits = limits or RequestLimits.from_config(KNOWN, CONFIG.speculation)
    completions = Completions(generator, byte_level_tokenizer(), limits)
    server = RpcServer([], max_message_bytes=max_bytes, max_metadata_bytes=max_metadata_bytes)
    servicer = GenerationServicer(completions, max_metadata_bytes=max_metadata_bytes)
    pb_grpc.add_GenerationServiceServicer_to_server(servicer, server.grpc_server)
    address = await server.start("127.0.0.1", 0)
    bounds = HttpLimits(max_bytes, max_metadata_bytes=max_metadata_bytes)
    app = create_http_app(completions, CollectorRegistry(), bounds)
    # Ours are the limits that shall be met.
    options = [("grpc.max_metadata_size", 1 << 20), ("grpc.absolute_max_metadata_size", 1 << 20)]
    async with (
        grpc.aio.insecure_channel(address, options=options) as channel,
        http_server(app) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        yield Doors(pb_grpc.GenerationServiceStub(channel), client)
    await server.stop(0.0)


@pytest.mark.parametrize(("field", "value", "passes"), TABLE)
async def test_a_limit_is_the_last_value_that_passes(field: str, value: Any, passes: bool) -> None:
    """As the configuration has it by default, over gRPC as over HTTP."""
    async with open_doors(ScriptedGenerator(served=[LARGE])) as doors:
        over_grpc = await doors.over_grpc(as_grpc(field, value))
        over_http = await doors.over_http(as_http(field, value))

    agree(over_grpc, over_http, passes=passes)
    assert passes or over_grpc is None or over_grpc.reason == "INVALID_ARGUMENT"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", [*FLOATS, "logit_bias"])
async def test_numbers_that_are_none_are_refused(field: str, value: float) -> None:
    """NaN and both infinities, in every field that takes a fraction."""
    async with open_doors(ScriptedGenerator(served=[LARGE])) as doors:
        given = {1: value} if field == "logit_bias" else value
        over_grpc = await doors.over_grpc(grpc_message(field, given))
        over_http = await doors.over_http(http_body(field, given))

    agree(over_grpc, over_http, passes=False)


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "passes"),
    [
        (2046, 1, True),
        (2047, 1, True),
        (2048, 1, False),
        (1000, 1047, True),
        (1000, 1048, True),
        (1000, 1049, False),
    ],
)
async def test_the_model_bounds_what_the_configuration_would_allow(
    num_prompt: int, max_tokens: int, passes: bool
) -> None:
    """A prompt leaves room for a token, and prompt and output fit the context together."""
    async with open_doors(ScriptedGenerator(served=[SMALL])) as doors:
        message = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=[1] * num_prompt), max_tokens=max_tokens
        )
        over_grpc = await doors.over_grpc(message)
        body = {"prompt": [1] * num_prompt, "max_tokens": max_tokens}
        over_http = await doors.over_http(body)

    agree(over_grpc, over_http, passes=passes)


@pytest.mark.parametrize(
    ("num_prompts", "n", "passes"),
    [
        (1, KNOWN.max_n - 1, True),
        (1, KNOWN.max_n, True),
        (1, KNOWN.max_n + 1, False),
        (1, 0, False),
        (KNOWN.max_prompts - 1, 1, True),
        (KNOWN.max_prompts, 1, True),
        (KNOWN.max_prompts + 1, 1, False),
        (KNOWN.max_prompts, KNOWN.max_n, True),
    ],
)
async def test_outputs_of_one_request_are_bounded(num_prompts: int, n: int, passes: bool) -> None:
    """HTTP alone has them: outputs of a prompt, and prompts."""
    generator = ScriptedGenerator(served=[SMALL])
    async with open_doors(generator) as doors:
        error = await doors.over_http({"prompt": [[1]] * num_prompts, "n": n})

    assert (error is None) == passes
    assert len(generator.requests) == (num_prompts * n if passes else 0)


@pytest.mark.parametrize(
    ("changed", "num_prompts", "n", "passes"),
    [
        ({"max_sessions": 2, "max_queued_requests": 5}, 3, 2, True),
        ({"max_sessions": 2, "max_queued_requests": 5}, 7, 1, True),
        ({"max_sessions": 2, "max_queued_requests": 5}, 4, 2, False),
        ({"max_requests_per_key": 3}, 1, 2, True),
        ({"max_requests_per_key": 3}, 1, 3, True),
        ({"max_requests_per_key": 3}, 2, 2, False),
    ],
)
async def test_outputs_that_can_never_be_admitted_together_are_a_bad_request(
    changed: dict[str, int], num_prompts: int, n: int, passes: bool
) -> None:
    """400 that names the limit: coming again later would not help."""
    config = parse_config({"test": {"controller": changed}})
    limits = RequestLimits.from_config(config.controller, config.speculation)
    async with open_doors(ScriptedGenerator(served=[SMALL]), limits=limits) as doors:
        error = await doors.over_http({"prompt": [[1]] * num_prompts, "n": n})

    assert (error is None) == passes
    if error is not None:
        assert (error["code"], error["param"]) == ("INVALID_ARGUMENT", "n")
        assert f"at most {limits.max_outputs} outputs in all" in error["message"]


async def post(doors: Doors, body: dict[str, Any] | str, **headers: str) -> httpx.Response:
    """What HTTP answers."""
    content = body if isinstance(body, str) else json.dumps(body)
    return await doors.client.post("/v1/completions", content=content, headers=headers)


@pytest.mark.parametrize("step", [-1, 0, 1])
async def test_a_request_may_be_as_long_as_its_limit(step: int) -> None:
    """A byte less, the limit, a byte more: of a body, and of a message."""
    limit = 20_000
    size = limit + step
    generator = ScriptedGenerator(served=[LARGE])
    async with open_doors(generator, max_bytes=limit) as doors:
        message = pb.GenerateRequest(text="x" * size)
        message.text = "x" * (2 * size - message.ByteSize())
        assert message.ByteSize() == size
        try:
            async for _ in doors.stub.Generate(message):
                pass
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            code = error.code()
        body = '{"prompt": "%s"}' % ("x" * (size - len('{"prompt": ""}')))
        assert len(body) == size
        response = await post(doors, body)

    over = step > 0
    assert code == (grpc.StatusCode.RESOURCE_EXHAUSTED if over else grpc.StatusCode.OK)
    assert response.status_code == (413 if over else 200)
    assert len(generator.requests) == (0 if over else 2)


def measured(headers: Any) -> int:
    """The bytes of names and values."""
    return sum(len(name) + len(value) for name, value in headers)


async def over_grpc_with(doors: Doors, length: int) -> ArboristError | None:
    """What gRPC says to a request with an entry of some bytes."""
    metadata = (("x-long", "y" * (length - len("x-long"))),)
    try:
        async for _ in doors.stub.Generate(grpc_message("max_tokens", 50), metadata=metadata):
            pass
    except grpc.aio.AioRpcError as error:
        return error_from_call(error)
    return None


@pytest.mark.parametrize("step", [-1, 0, 1])
async def test_metadata_may_be_as_long_as_its_limit(step: int) -> None:
    """What a request says beside its body is bounded alike at both doors."""
    limit = KNOWN.max_metadata_bytes
    async with open_doors(ScriptedGenerator(served=[LARGE])) as doors:
        request = doors.client.build_request("POST", "/v1/completions", content='{"prompt": [1]}')
        request.headers["x-long"] = ""
        request.headers["x-long"] = "y" * (limit + step - measured(request.headers.raw))
        response = await doors.client.send(request)
        # Libraries add entries of their own: how much, the refusal says.
        refused = await over_grpc_with(doors, limit + 1)
        assert refused is not None
        added = int(refused.metadata["value"].removesuffix(" bytes")) - limit - 1
        over_grpc = await over_grpc_with(doors, limit + step - added)

    assert response.status_code == (413 if step > 0 else 200)
    over_http = None if step <= 0 else response.json()["error"]
    agree(over_grpc, over_http, passes=step <= 0)
    if over_http is not None:
        assert over_http["code"] == "REQUEST_TOO_LARGE"
        assert over_http["message"].startswith(f"metadata = {limit + 1} bytes: must be at most")


async def test_metadata_far_over_its_limit_never_gets_to_the_service() -> None:
    """GRPC itself reads no more than a few times the limit, and the connection lives on."""
    generator = ScriptedGenerator(served=[LARGE])
    async with open_doors(generator) as doors:
        refused = await over_grpc_with(doors, 100_000)
        assert refused is not None
        assert refused.code is ErrorCode.RESOURCE_EXHAUSTED
        assert await over_grpc_with(doors, 100) is None
    assert len(generator.requests) == 1


class Doorman(ScriptedGenerator):
    """Admits like a controller; what it admitted goes on for ever."""

    def __init__(self, admission: Admission) -> None:
        super().__init__(served=[SMALL], hold_at=0)
        self._admission = admission

    def generate(self, request: GenerationRequest) -> ScriptedGeneration:
        """Starts or queues a generation, or refuses it."""
        ticket = self._admission.enter(request.client_key)
        generation = super().generate(request)
        close = generation.aclose

        async def leave() -> None:
            ticket.leave()
            await close()

        generation.aclose = leave  # type: ignore[method-assign]
        return generation


# Most requests that run, wait, and are one client's (0 = any); and how many that lets in.
DOORMEN = {
    "sessions and queue": ((2, 3, 0), 5),
    "one client's share": ((64, 256, 4), 4),
}


@pytest.mark.parametrize("case", DOORMEN)
@pytest.mark.parametrize("first_over_grpc", [True, False])
async def test_one_request_more_than_may_be_there_is_refused(
    case: str, first_over_grpc: bool
) -> None:
    """RESOURCE_EXHAUSTED or 429 with a time to come again; who leaves makes room for the next."""
    (running, waiting, per_key), most = DOORMEN[case]
    admission = Admission(running, waiting, lambda *_: None, max_per_key=per_key)
    # One message for both doors, and one client: they all come from this host.
    message = grpc_message("max_tokens", 50)
    async with open_doors(Doorman(admission)) as doors:

        async def enter(over_grpc: bool) -> None:
            if over_grpc:
                async for _ in doors.stub.Generate(message):
                    pass
            else:
                await post(doors, {"prompt": [1]})

        there: list[asyncio.Task[None]] = []
        for number in range(most):
            there.append(asyncio.create_task(enter(number % 2 == first_over_grpc)))
            count = number + 1
            await until(lambda: admission.num_running + admission.num_waiting == count)  # noqa: B023
        over_grpc = await doors.over_grpc(message)
        response = await post(doors, {"prompt": [1]})
        assert over_grpc is not None
        assert over_grpc.reason == response.json()["error"]["code"] == "RESOURCE_EXHAUSTED"
        assert over_grpc.retry_after_ms > 0
        assert response.status_code == 429
        assert int(response.headers["Retry-After"]) > 0

        there[0].cancel()
        await until(lambda: admission.num_running + admission.num_waiting == most - 1)
        there[0] = asyncio.create_task(enter(not first_over_grpc))
        await until(lambda: admission.num_running + admission.num_waiting == most)
        for one in there:
            one.cancel()
        await asyncio.gather(*there, return_exceptions=True)
        await until(lambda: admission.num_running + admission.num_waiting == 0)


async def test_a_grpc_client_that_does_not_read_is_not_decoded_for() -> None:
    """Behind what its window takes nothing piles up; after a while it loses its request."""
    rounds = [[1] * (1 << 16)] * 400
    generator = ScriptedGenerator(rounds, served=[LARGE])
    limits = RequestLimits.from_config(KNOWN, CONFIG.speculation)
    server = RpcServer([], max_message_bytes=KNOWN.max_request_bytes)
    # Without text, which would take its time.
    servicer = GenerationServicer(Completions(generator, None, limits), client_timeout_s=0.2)
    pb_grpc.add_GenerationServiceServicer_to_server(servicer, server.grpc_server)
    address = await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(address) as channel:
        call = pb_grpc.GenerationServiceStub(channel).Generate(
            grpc_message("max_tokens", KNOWN.max_max_tokens)
        )
        await call.read()
        await until(lambda: bool(generator.generations) and generator.generations[0].closed)
        assert generator.generations[0].num_given < len(rounds) / 1.5
        call.cancel()
    await server.stop(0.0)
