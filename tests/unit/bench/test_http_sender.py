"""A load over HTTP: the same figures as over gRPC."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry
from tests.contract.scripted_generator import ScriptedGenerator
from tests.unit.api.tokenizers import byte_level_tokenizer

from arborist.cli.bench_serve.http_sender import HttpSender
from arborist.cli.bench_serve.load_request import LoadRequest
from arborist.cli.bench_serve.load_run import LoadRun
from arborist.cli.bench_serve.record import RequestRecord
from arborist.cli.bench_serve.sender import Delivery, GrpcSender, RoundTotals, Sender
from arborist.cli.main import main
from arborist.client import AsyncClient, Message, Speculation
from arborist.client.prompt import Prompt
from arborist.common.api_key import ApiKey, key_digest, new_api_key
from arborist.core.errors import (
    ArboristError,
    DeadlineError,
    InvalidArgumentError,
    ResourceExhaustedError,
    SessionFailedError,
    UnauthenticatedError,
    UnavailableError,
)
from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.doorkeeper import Doorkeeper
from arborist.orchestrator.api.generation_servicer import GenerationServicer
from arborist.orchestrator.api.http import create_http_app
from arborist.orchestrator.api.validator import RequestLimits
from arborist.orchestrator.http_server import HttpServer
from arborist.v1 import generation_pb2_grpc as pb_grpc

KEY = new_api_key()
ROUNDS = [[5], [6, 7, 8], [9, 10, 11]]
TOTALS = {"num_spec_steps": 1, "num_accepted_draft_tokens": 1, "num_draft_tokens": 1}


def load_request(
    prompt: Prompt = "ab", *, max_tokens: int = 8, timeout_s: float = 20
) -> LoadRequest:
    """A request that says something of everything."""
    speculation = Speculation(True, depth=3)
    return LoadRequest(0, prompt, max_tokens, 0.5, 7, speculation, True, timeout_s)


@asynccontextmanager
async def http_of(generator: ScriptedGenerator) -> AsyncIterator[str]:
    """Its HTTP door, for who has KEY; yields the URL."""
    completions = Completions(generator, byte_level_tokenizer(), RequestLimits())
    doorkeeper = Doorkeeper([ApiKey("alice", key_digest(KEY.encode()))])
    server = HttpServer("127.0.0.1", 0)
    await server.start(create_http_app(completions, CollectorRegistry(), doorkeeper=doorkeeper))
    try:
        yield server.url
    finally:
        await server.stop(0)


@asynccontextmanager
async def grpc_of(generator: ScriptedGenerator) -> AsyncIterator[Sender]:
    """A sender to its gRPC door."""
    server = grpc.aio.server()
    servicer = GenerationServicer(Completions(generator, byte_level_tokenizer(), RequestLimits()))
    pb_grpc.add_GenerationServiceServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with AsyncClient(address) as client:
            yield GrpcSender(client)
    finally:
        await server.stop(None)


async def record_of(sender: Sender, request: LoadRequest) -> RequestRecord:
    """What became of one request."""
    run = LoadRun(sender, iter([request]), duration_s=None)
    (record,) = (await run.closed_loop(1)).records
    return record


async def received(sender: Sender, request: LoadRequest) -> list[Delivery | RoundTotals]:
    """Everything that came."""
    async with aclosing(sender.stream(request)) as deliveries:
        return [one async for one in deliveries]


@pytest.mark.parametrize("prompt", ["ab", [1, 2, 3], [Message("user", "ab")]])
async def test_both_protocols_ask_and_count_the_same(prompt: Prompt) -> None:
    """The controller gets the same request, the record the same messages, tokens and rounds."""
    generator = ScriptedGenerator(ROUNDS)
    async with grpc_of(generator) as sender:
        over_grpc = await record_of(sender, load_request(prompt))
    async with http_of(generator) as url, HttpSender.connected(url, KEY, "tiny") as sender:
        over_http = await record_of(sender, load_request(prompt))

    for record in (over_grpc, over_http):
        assert (record.outcome, record.message_tokens) == ("completed", [1, 3, 3])
        assert (record.num_rounds, record.accepted_tokens, record.draft_tokens) == (2, 4, 12)
    first, second = [
        dataclasses.replace(one, model="", client_key="") for one in generator.requests
    ]
    assert first == second


@asynccontextmanager
async def other_server(*chunks: object) -> AsyncIterator[str]:
    """A server that says just this, whatever is asked; yields its URL."""
    app = FastAPI()

    @app.post("/v1/completions")
    async def answer() -> StreamingResponse:
        said = [one if isinstance(one, str) else json.dumps(one) for one in chunks]
        return StreamingResponse(iter(f"data: {one}\n\n" for one in said))

    server = HttpServer("127.0.0.1", 0)
    await server.start(app)
    try:
        yield server.url
    finally:
        await server.stop(0)


async def test_without_totals_messages_are_rounds() -> None:
    """Plain decoding has none: every message after the first tokens is a round."""
    pieces = [{"choices": [{"token_ids": ids}]} for ids in ([], [5], [6, 7], [], [8])]
    async with (
        other_server(*pieces, {"choices": [], "metrics": {}}, "[DONE]") as url,
        HttpSender.connected(url, None, "") as sender,
    ):
        came = await received(sender, load_request())

    assert came == [Delivery(1, None, 0), Delivery(2, 1, 0), Delivery(1, 0, 0)]


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [{"choices": []}],
        ["{"],
        [{"nothing": 1}, "[DONE]"],
        [{"error": "text"}],
        [[1, 2]],
        [7],
        [{"choices": [5]}],
        [
            {"choices": [], "metrics": {"speculative_decoding": {**TOTALS, "num_spec_steps": "x"}}},
            "[DONE]",
        ],
        ["x" * (2 << 20)],
    ],
    ids=range(10),
)
async def test_a_stream_that_breaks_off_is_a_failure(chunks: list[object]) -> None:
    """Without its end mark, or with something else than chunks."""
    async with other_server(*chunks) as url, HttpSender.connected(url, None, "") as sender:
        with pytest.raises(UnavailableError):
            await received(sender, load_request())
        assert (await record_of(sender, load_request())).outcome == "failed"


@pytest.mark.parametrize("body", ["text", {"error": "text"}, ["error"], {"data": [{"id": "m"}]}])
async def test_answers_of_another_shape_are_failures(body: object) -> None:
    """Refusals and lists of models that no server of ours would send."""
    app = FastAPI()

    @app.post("/v1/completions")
    @app.get("/v1/models")
    async def answer(request: Request) -> JSONResponse:
        return JSONResponse(body, 400 if request.method == "POST" else 200)

    server = HttpServer("127.0.0.1", 0)
    await server.start(app)
    async with HttpSender.connected(server.url, None, "") as sender:
        with pytest.raises(UnavailableError):
            await received(sender, load_request())
        with pytest.raises(UnavailableError):
            await sender.list_models()
    await server.stop(0)


@pytest.mark.parametrize("key", ["", "a key", "schl\u00fcssel", "key\r\nx: y"])
async def test_a_key_that_no_header_carries_is_refused(key: str) -> None:
    """As over gRPC, before anything is sent, without repeating it."""
    with pytest.raises(InvalidArgumentError, match=r"api_key = .* characters"):
        async with HttpSender.connected("127.0.0.1:1", key, ""):
            pass


@pytest.mark.parametrize(
    ("generator", "request_", "kind"),
    [
        (
            ScriptedGenerator(refusal=ResourceExhaustedError("full", retry_after_ms=1500)),
            load_request(),
            ResourceExhaustedError,
        ),
        (ScriptedGenerator(), load_request(max_tokens=0), InvalidArgumentError),
        (
            ScriptedGenerator(failure=SessionFailedError("NaN")),
            load_request(),
            SessionFailedError,
        ),
        (ScriptedGenerator(hold_at=1), load_request(timeout_s=0.3), DeadlineError),
    ],
)
async def test_failures_are_those_of_the_table(
    generator: ScriptedGenerator, request_: LoadRequest, kind: type[ArboristError]
) -> None:
    """Before the stream, within it, and by the client's own deadline."""
    async with http_of(generator) as url, HttpSender.connected(url, KEY, "") as sender:
        with pytest.raises(kind) as caught:
            await received(sender, request_)

    if kind is ResourceExhaustedError:
        assert caught.value.retry_after_ms == 2000


async def test_a_client_that_leaves_ends_its_request() -> None:
    """Closing the stream early closes the connection, and the server frees what it held."""
    generator = ScriptedGenerator(hold_at=1)
    async with http_of(generator) as url, HttpSender.connected(url, KEY, "") as sender:
        deliveries = sender.stream(load_request())
        await anext(deliveries)
        await deliveries.aclose()
        await asyncio.wait_for(generator.closed.wait(), 10)

    assert generator.generations[0].closed


@pytest.mark.parametrize(("key", "kind"), [(None, UnauthenticatedError), (KEY, UnavailableError)])
async def test_who_is_not_let_in_is_told(
    unused_tcp_port: int, key: str | None, kind: type[ArboristError]
) -> None:
    """No key where one is needed, and nobody there."""
    async with http_of(ScriptedGenerator()) as url:
        address = url if key is None else f"127.0.0.1:{unused_tcp_port}"
        async with HttpSender.connected(address, key, "") as sender:
            with pytest.raises(kind):
                await received(sender, load_request())
            with pytest.raises(kind):
                await sender.list_models()


async def test_a_server_is_measured_over_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command's report has the same shape; the key comes from the environment."""
    monkeypatch.setenv("ARBORIST_API_KEY", KEY)
    report_file = tmp_path / "report.json"

    def measure(url: str) -> int:
        load = ["--num-requests=6", "--max-tokens=8", "--concurrency=3", "--speculation=on"]
        asked = ["--synthetic-prompt-tokens=2:4", f"--json={report_file}"]
        with pytest.raises(SystemExit) as caught:
            main(["bench-serve", f"--address={url}", "--protocol=http", *load, *asked])
        return int(caught.value.code or 0)

    async with http_of(ScriptedGenerator(ROUNDS)) as url:
        assert await asyncio.to_thread(measure, url) == 0

    report = json.loads(report_file.read_text())
    figures = report["points"][0]["figures"]
    assert report["settings"]["protocol"] == "http"
    assert KEY not in report_file.read_text()
    assert (figures["completed"], figures["output_tokens"], figures["tau"]) == (6, 42, 3.0)
    assert figures["errors"] == {}
