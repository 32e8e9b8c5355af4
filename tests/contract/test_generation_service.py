"""`GenerationService` over loopback gRPC: order, refusals, stops, cancellation, errors."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tests.contract.scripted_generator import ScriptedGenerator
from tests.unit.api.tokenizers import byte_level_tokenizer

from arborist.client import AsyncClient, Client, Completion, Message, Speculation, TokenLogprob
from arborist.core.errors import (
    ArboristError,
    DeadlineError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
    UnknownModelError,
)
from arborist.core.sampling import SamplingParams
from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.generation_servicer import GenerationServicer
from arborist.orchestrator.api.validator import RequestLimits
from arborist.orchestrator.session import FinishReason
from arborist.v1 import generation_pb2 as pb
from arborist.v1 import generation_pb2_grpc as pb_grpc

LIMITS = RequestLimits(max_max_tokens=80, max_depth=6)
TOKENIZER = byte_level_tokenizer()
Serve = Callable[[ScriptedGenerator], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serves generators on free loopback ports until the test ends."""
    servers = []

    async def start(generator: ScriptedGenerator) -> str:
        server = grpc.aio.server()
        servicer = GenerationServicer(Completions(generator, TOKENIZER, LIMITS))
        pb_grpc.add_GenerationServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        await server.stop(None)


@asynccontextmanager
async def stub_for(address: str) -> AsyncIterator["pb_grpc.GenerationServiceAsyncStub"]:
    """A bare stub, for requests that the SDK would not build."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield pb_grpc.GenerationServiceStub(channel)


def request(**fields) -> pb.GenerateRequest:
    """A valid request with some fields replaced."""
    if not {"text", "token_ids", "messages"} & set(fields):
        fields["token_ids"] = pb.TokenIds(ids=[1, 2, 3])
    return pb.GenerateRequest(**fields)


def chat(role: str) -> pb.ChatMessages:
    """One message."""
    return pb.ChatMessages(messages=[pb.ChatMessage(role=role, content="a")])


def tree(**fields) -> pb.GenerateRequest:
    """A request with a tree."""
    return request(speculation=pb.Speculation(**fields))


def sampled(**fields) -> pb.GenerateRequest:
    """A request with sampling."""
    return request(sampling=pb.Sampling(**fields))


# What is wrong, the request, the field named, what the limit says.
REFUSED = {
    "no prompt": (pb.GenerateRequest(), "prompt", "text, token ids or messages"),
    "empty text": (request(text=""), "prompt", "at least 1"),
    "empty ids": (request(token_ids=pb.TokenIds()), "prompt", "at least 1"),
    "no messages": (request(messages=pb.ChatMessages()), "messages", "at least 1"),
    "bad role": (request(messages=chat("tool")), "messages[0].role", "assistant"),
    "long prompt": (request(token_ids=pb.TokenIds(ids=[1] * 100)), "prompt", "99"),
    "negative id": (request(token_ids=pb.TokenIds(ids=[-1])), "token_ids[0]", "[0, 266)"),
    "large id": (request(token_ids=pb.TokenIds(ids=[1, 266])), "token_ids[1]", "[0, 266)"),
    "max_tokens 0": (request(max_tokens=0), "max_tokens", "[1, 80]"),
    "max_tokens 81": (request(max_tokens=81), "max_tokens", "[1, 80]"),
    "over the context": (
        request(token_ids=pb.TokenIds(ids=[1] * 21), max_tokens=80),
        "prompt + max_tokens",
        "100 tokens",
    ),
    "temperature < 0": (sampled(temperature=-0.1), "temperature", "0 or a number in [1e-06, 100]"),
    "temperature NaN": (
        sampled(temperature=float("nan")),
        "temperature",
        "0 or a number in [1e-06, 100]",
    ),
    "temperature > 100": (
        sampled(temperature=100.1),
        "temperature",
        "0 or a number in [1e-06, 100]",
    ),
    "top_k < 0": (sampled(top_k=-1), "top_k", "0"),
    "top_p 0": (sampled(top_p=0.0), "top_p", "(0, 1]"),
    "top_p > 1": (sampled(top_p=1.1), "top_p", "(0, 1]"),
    "min_p > 1": (sampled(min_p=1.1), "min_p", "[0, 1]"),
    "repetition_penalty 0": (sampled(repetition_penalty=0.0), "repetition_penalty", "[0.01, 2]"),
    "presence_penalty 3": (sampled(presence_penalty=3.0), "presence_penalty", "[-2, 2]"),
    "frequency_penalty -3": (sampled(frequency_penalty=-3.0), "frequency_penalty", "[-2, 2]"),
    "bias of no token": (sampled(logit_bias={266: 1.0}), "logit_bias[266]", "[0, 266)"),
    "bias over 100": (sampled(logit_bias={5: 101.0}), "logit_bias[5]", "[-100, 100]"),
    "min_tokens over max_tokens": (request(max_tokens=3, min_tokens=4), "min_tokens", "[0, 3]"),
    "stop token over the vocabulary": (
        request(stop_token_ids=[266]),
        "stop_token_ids[0]",
        "[0, 266)",
    ),
    "logprobs 21": (request(logprobs=21), "logprobs", "[0, 20]"),
    "five stops": (request(stop=["a"] * 5), "stop", "at most 4"),
    "empty stop": (request(stop=[""]), "stop[0]", "1 to 64 bytes"),
    "long stop": (request(stop=["a" * 65]), "stop[0]", "1 to 64 bytes"),
    "depth 0": (tree(depth=0), "speculation.depth", "[1, 6]"),
    "depth 7": (tree(depth=7), "speculation.depth", "[1, 6]"),
    "tree top_k 33": (tree(top_k=33), "speculation.top_k", "[1, 32]"),
    "num_draft_tokens 257": (
        tree(num_draft_tokens=257),
        "speculation.num_draft_tokens",
        "[1, 256]",
    ),
    "unknown policy": (tree(policy="medusa"), "speculation.policy", "eagle1_static"),
    "empty policy": (tree(policy=""), "speculation.policy", "eagle2"),
}


async def test_bad_requests_are_refused_before_anything_starts(serve: Serve) -> None:
    """Each ends with INVALID_ARGUMENT and google.rpc details that name field, value and limit."""
    generator = ScriptedGenerator()
    async with stub_for(await serve(generator)) as stub:
        for case, (message, field, limit) in REFUSED.items():
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Generate(message).read()

            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, case
            info, bad_request = details_of(caught.value)
            assert (info.reason, info.domain) == ("INVALID_ARGUMENT", "arborist"), case
            assert info.metadata["field"] == field, case
            assert limit in info.metadata["limit"], case
            assert info.metadata["value"], case
            assert bad_request.field_violations[0].field == field, case

    assert generator.requests == []


def details_of(
    error: grpc.aio.AioRpcError,
) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest]:
    """Unpacks what an error's trailing metadata carry."""
    found = [error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()]
    for detail in rpc_status.from_call(error).details:
        for one in found:
            detail.Unpack(one)
    return found[0], found[1]


async def test_messages_come_in_order_one_per_round(serve: Serve) -> None:
    """Started first, a Round per round with its text, Summary last."""
    rounds = [TOKENIZER.encode(text) for text in ("ab", "c é", "end")]
    generator = ScriptedGenerator(rounds, cached_prompt_tokens=2)
    async with stub_for(await serve(generator)) as stub:
        messages = [one async for one in stub.Generate(request(text="abc"))]

    kinds = [one.WhichOneof("event") for one in messages]
    assert kinds == ["started", "round", "round", "round", "summary"]
    assert messages[0].started.prompt_tokens == len(TOKENIZER.encode("abc"))
    assert messages[0].started.seed == 42
    assert [list(one.round.token_ids) for one in messages[1:-1]] == rounds
    assert [one.round.text for one in messages[1:-1]] == ["ab", "c é", "end"]
    assert [one.round.round_index for one in messages[1:-1]] == [-1, 0, 1]
    assert messages[1].round.times.total_ms == 10.0
    assert messages[-1].summary.finish_reason == pb.FINISH_REASON_LENGTH
    assert messages[-1].summary.cached_prompt_tokens == 2
    assert messages[-1].summary.speculation.acceptance_histogram == [0, 1, 1]


async def test_text_is_complete_when_the_output_ends(serve: Serve) -> None:
    """The last round carries what was held back for a stop string or an unfinished character."""
    rounds = [TOKENIZER.encode("ok"), TOKENIZER.encode("EN"), [*TOKENIZER.encode("x"), 0]]
    async with AsyncClient(await serve(ScriptedGenerator(rounds))) as client:
        eos = await client.complete([1], stop=["xyz"])
        length = await client.complete([1], stop=["END"], max_tokens=4)

    assert [one.text for one in eos.rounds] == ["ok", "EN", "x"]
    assert [one.text for one in length.rounds][:2] == ["ok", "EN"]


async def test_a_stop_token_is_delivered_without_text(serve: Serve) -> None:
    """It ends the text as the model's own end token does, and what was held back comes out."""
    end = TOKENIZER.encode("!")[0]
    rounds = [TOKENIZER.encode("ok"), [*TOKENIZER.encode("EN"), end]]
    async with AsyncClient(await serve(ScriptedGenerator(rounds))) as client:
        completion = await client.complete([1], stop=["END"], stop_token_ids=[end])

    assert completion.text == "okEN"
    assert completion.token_ids == (*rounds[0], *rounds[1])


@pytest.mark.parametrize("blocking", [False, True])
async def test_logprobs_come_with_their_tokens(serve: Serve, blocking: bool) -> None:
    """One per delivered token, with as many of the most probable as asked for; none unasked."""
    rounds = [TOKENIZER.encode("okE"), TOKENIZER.encode("NDxy")]
    address = await serve(ScriptedGenerator(rounds))

    async def complete(**options: Any) -> Completion:
        if blocking:
            with Client(address) as client:
                return await asyncio.to_thread(client.complete, "a", **options)
        async with AsyncClient(address) as client:
            return await client.complete("a", **options)

    cut = await complete(logprobs=2, stop=["END"])
    own = await complete(logprobs=0)
    none = await complete()

    assert [len(one.logprobs) for one in cut.rounds] == [3, 2]
    assert [one.logprob for one in cut.logprobs] == [-token / 2 for token in cut.token_ids]
    assert cut.logprobs[0].top == (TokenLogprob(0, -1.0), TokenLogprob(1, -2.0))
    assert [one.top for one in own.logprobs] == [()] * 7
    assert none.logprobs == ()


async def test_a_stop_string_across_rounds_ends_the_output(serve: Serve) -> None:
    """Text ends before it, tokens with the one that completes it; nothing follows."""
    rounds = [TOKENIZER.encode("okE"), TOKENIZER.encode("NDxy"), TOKENIZER.encode("more")]
    generator = ScriptedGenerator(rounds)
    async with AsyncClient(await serve(generator)) as client:
        completion = await client.complete("abc", stop=["END", "zzz"])

    assert completion.text == "ok"
    assert TOKENIZER.decode(completion.token_ids) == "okEND"
    assert completion.summary.finish_reason == "stop"
    assert completion.summary.completion_tokens == len(completion.token_ids) == 5
    assert generator.generations[0].finished == (FinishReason.STOP, 5)
    assert generator.closed.is_set()


async def test_cancelling_frees_the_generation_at_once(serve: Serve) -> None:
    """Whether the client leaves while a round is computed or between rounds."""
    waiting = ScriptedGenerator(hold_at=1)
    async with AsyncClient(await serve(waiting)) as client:
        async with client.generate([1, 2]) as stream:
            assert (await anext(stream)).token_ids == (5, 6)
            await asyncio.wait_for(waiting.held.wait(), 10)
        await asyncio.wait_for(waiting.closed.wait(), 10)
        assert stream.summary is None
        assert stream.token_ids == (5, 6)

    flooding = ScriptedGenerator(rounds=[[5] * 90] * 100_000)
    async with AsyncClient(await serve(flooding)) as client:
        stream = client.generate([1, 2])
        await anext(stream)
        stream.close()
        await asyncio.wait_for(flooding.closed.wait(), 10)


async def test_a_deadline_ends_the_generation(serve: Serve) -> None:
    """The client gets DeadlineError, the workers' state is freed."""
    generator = ScriptedGenerator(hold_at=1)
    async with AsyncClient(await serve(generator)) as client:
        stream = client.generate([1, 2], timeout_s=0.5)
        with pytest.raises(DeadlineError):
            await stream.completion()

    await asyncio.wait_for(generator.closed.wait(), 10)


async def test_the_callers_trace_is_continued(serve: Serve) -> None:
    """The call's traceparent reaches the controller; one that does not parse is ignored."""
    generator = ScriptedGenerator()
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    async with AsyncClient(await serve(generator)) as client:
        completion = await client.complete([1], traceparent=traceparent)
        await client.complete([1], traceparent="nonsense")
        await client.complete([1])

    assert [one.traceparent for one in generator.requests] == [traceparent, "", ""]
    assert completion.started.trace_id == "f" * 32


async def test_everything_a_client_says_reaches_the_controller(serve: Serve) -> None:
    """Sampling, seed and tree as given; the prompt as the tokenizer has it."""
    generator = ScriptedGenerator()
    async with AsyncClient(await serve(generator)) as client:
        await client.complete(
            [Message("user", "abc")],
            max_tokens=9,
            temperature=0.5,
            top_k=4,
            top_p=0.75,
            min_p=0.25,
            seed=2**64 - 1,
            speculation=Speculation(False, 2, 3, num_draft_tokens=4, policy="chain"),
            model="tiny",
            ignore_eos=True,
            repetition_penalty=1.25,
            presence_penalty=-0.5,
            frequency_penalty=0.0625,
            logit_bias={9: -100.0, 3: 0.1},
            min_tokens=4,
            stop_token_ids=(8, 2),
            logprobs=0,
        )
        await client.complete([1])

    got, plain = generator.requests = generator.requests
    sampling, drafting = got.sampling, got.speculation
    assert TOKENIZER.decode(got.prompt_token_ids) == "abc"
    assert (got.max_tokens, got.seed, got.ignore_eos, got.model) == (9, 2**64 - 1, True, "tiny")
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (
        0.5,
        4,
        0.75,
        0.25,
    )
    assert (drafting.enabled, drafting.depth, drafting.top_k, drafting.num_draft_tokens) == (
        False,
        2,
        3,
        4,
    )
    assert drafting.policy == "chain"
    assert (sampling.repetition_penalty, sampling.presence_penalty) == (1.25, -0.5)
    assert (sampling.frequency_penalty, sampling.min_tokens) == (0.0625, 4)
    assert sampling.logit_bias == ((3, float(np.float32(0.1))), (9, -100.0))
    assert (got.stop_token_ids, got.num_logprobs) == ((8, 2), 0)
    assert plain.sampling == SamplingParams()
    assert (plain.stop_token_ids, plain.num_logprobs) == ((), None)


@pytest.mark.parametrize("blocking", [True, False])
async def test_errors_arrive_as_they_were_raised(serve: Serve, blocking: bool) -> None:
    """Class, message, details and advice cross the wire, before and after the first round."""
    full = ResourceExhaustedError("full", metadata={"running": "64"}, retry_after_ms=1500)
    gone = UnavailableError("no target is left")
    refusing = await serve(ScriptedGenerator(refusal=full))
    failing = await serve(ScriptedGenerator(failure=gone))

    for address, raised in ((refusing, full), (failing, gone)):
        error = await failure_of(address, blocking)
        assert type(error) is type(raised)
        assert str(error) == str(raised)
        assert error.metadata == raised.metadata
        assert error.retry_after_ms == raised.retry_after_ms


async def failure_of(address: str, blocking: bool) -> ArboristError:
    """Asks for a completion that fails."""
    try:
        if blocking:
            with Client(address) as client:
                await asyncio.to_thread(client.complete, [1])
        else:
            async with AsyncClient(address) as client:
                await client.complete([1])
    except ArboristError as error:
        return error
    pytest.fail("nothing was raised")


async def test_unexpected_errors_show_an_incident_and_nothing_else(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """The text of the exception goes to the log, the incident to both."""
    generator = ScriptedGenerator(failure=RuntimeError("secret path"))
    async with AsyncClient(await serve(generator)) as client:
        with pytest.raises(ArboristError) as caught:
            await client.complete([1])

    assert "secret" not in caught.value.message
    incident = caught.value.metadata["incident"]
    assert incident in caught.value.message
    assert incident in caplog.text
    assert "secret path" in caplog.text
    assert generator.closed.is_set()


async def test_unknown_models_and_a_server_without_model(serve: Serve) -> None:
    """The first names what is served, the second says to come again."""
    async with AsyncClient(await serve(ScriptedGenerator())) as client:
        with pytest.raises(UnknownModelError, match=r"other.*tiny"):
            await client.complete([1], model="other")
    async with AsyncClient(await serve(ScriptedGenerator(served=[]))) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.complete([1])
        assert caught.value.retry_after_ms > 0
        assert await client.list_models() == []


async def test_a_long_text_is_refused_like_a_short_one(serve: Serve) -> None:
    """Tokenising aside of the event loop changes nothing for the client."""
    async with AsyncClient(await serve(ScriptedGenerator())) as client:
        with pytest.raises(InvalidArgumentError, match="20000 tokens: must be at most 99"):
            await client.complete("x" * 20_000)


async def test_the_blocking_client_does_what_the_other_does(serve: Serve) -> None:
    """Streaming, completion, models and leaving early."""
    generator = ScriptedGenerator(rounds=[TOKENIZER.encode("ab"), TOKENIZER.encode("é")])
    held = ScriptedGenerator(hold_at=1)
    address, held_address = await serve(generator), await serve(held)

    def use() -> None:
        with Client(address) as client:
            (model,) = client.list_models(timeout_s=10)
            assert (model.id, model.context_length, model.vocab_size) == ("tiny", 100, 266)
            assert (model.created_s, model.speculation) == (7, True)
            with client.generate("abc") as stream:
                assert [one.text for one in stream] == ["ab", "é"]
                assert list(stream) == []
                assert stream.summary is not None
                assert stream.text == "abé"
            assert client.complete("abc").token_ids == stream.token_ids
        with Client(held_address) as client, client.generate([1]) as stream:
            assert next(stream).token_ids == (5, 6)
        assert list(stream) == []

    await asyncio.to_thread(use)
    await asyncio.wait_for(held.closed.wait(), 10)


async def test_a_server_that_goes_away_is_told_from_one_that_never_was(serve: Serve) -> None:
    """What came before stays readable."""
    generator = ScriptedGenerator(hold_at=1)
    server = grpc.aio.server()
    pb_grpc.add_GenerationServiceServicer_to_server(
        GenerationServicer(Completions(generator, TOKENIZER, LIMITS)), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        stream = client.generate([1])
        await anext(stream)
        await server.stop(None)
        with pytest.raises(ArboristError) as caught:
            await anext(stream)

    assert "no server answers" not in caught.value.message
    assert stream.token_ids == (5, 6)


async def test_a_server_on_this_machine_is_not_asked_through_a_proxy(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    """An HTTP proxy in the environment does not come between."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_tcp_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    async with AsyncClient(await serve(ScriptedGenerator())) as client:
        assert (await client.complete([1], timeout_s=20)).token_ids == (5, 6, 7)


@pytest.mark.parametrize("blocking", [True, False])
async def test_a_server_that_is_not_there_is_named(unused_tcp_port: int, blocking: bool) -> None:
    """The error says where nobody answered."""
    address = f"127.0.0.1:{unused_tcp_port}"
    error = await failure_of(address, blocking)

    assert isinstance(error, UnavailableError)
    assert address in error.message


async def test_the_controller_knows_whose_request_it_is(serve: Serve) -> None:
    """By the key in the call's metadata, else by address; the key itself stays at the door."""
    generator = ScriptedGenerator()
    async with stub_for(await serve(generator)) as stub:
        for metadata in ((("authorization", "Bearer k1"),), (("x-api-key", "k2"),), ()):
            async for _ in stub.Generate(request(), metadata=metadata):
                pass

    first, second, third = [one.client_key for one in generator.requests]
    assert len({first, second, third}) == 3
    assert third == "127.0.0.1"
    assert "k1" not in first
    assert "k2" not in second
