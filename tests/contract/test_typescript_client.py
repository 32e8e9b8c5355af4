"""The TypeScript client over loopback gRPC: what it sends, gets, cancels and refuses."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from tests.contract.scripted_generator import ScriptedGenerator
from tests.documents import Document
from tests.unit.api.tokenizers import byte_level_tokenizer

from arborist.client import AsyncClient, Speculation
from arborist.core.errors import ResourceExhaustedError, SessionFailedError
from arborist.orchestrator.api.client_key import client_key
from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.generation_servicer import GenerationServicer
from arborist.orchestrator.api.validator import RequestLimits
from arborist.v1 import generation_pb2_grpc as pb_grpc

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "services/typescript"
SCENARIOS = Path(__file__).parent / "typescript/scenarios.mts"
LIMITS = RequestLimits(max_max_tokens=80, max_depth=6)
TOKENIZER = byte_level_tokenizer()
Run = Callable[..., Awaitable[Any]]


def run_tool(*command: str, cwd: Path) -> None:
    """Runs a tool of npm to its end; what it says is shown when it fails."""
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client, built as its documentation says; programs and examples type-checked with it."""
    folder = tmp_path_factory.mktemp("typescript")
    # Where the compiler and Node.js look for what the programs import.
    (folder / "node_modules").symlink_to(REPOSITORY / "node_modules")
    shutil.copy(SCENARIOS, folder)
    for index, example in enumerate(Document("docs/clients.md").blocks("ts")):
        (folder / f"example_{index}.mts").write_text(example, encoding="utf-8")
    project = {
        "extends": str(PACKAGE / "tsconfig.json"),
        "compilerOptions": {"declaration": False, "rootDir": ".", "outDir": "."},
        "include": ["*.mts"],
        "exclude": [],  # By default that is all of outDir.
    }
    (folder / "tsconfig.json").write_text(json.dumps(project), encoding="utf-8")
    run_tool("npm", "run", "--silent", "build", cwd=PACKAGE)
    run_tool(str(REPOSITORY / "node_modules/.bin/tsc"), cwd=folder)
    return folder / "scenarios.mjs"


@pytest.fixture
async def run(program: Path) -> AsyncIterator[Run]:
    """Runs a scenario against a generator on a free loopback port; returns what it printed."""
    servers = []

    async def scenario(name: str, generator: ScriptedGenerator, *, stop_held: bool = False) -> Any:
        server = grpc.aio.server()
        servicer = GenerationServicer(Completions(generator, TOKENIZER, LIMITS))
        pb_grpc.add_GenerationServiceServicer_to_server(servicer, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        servers.append(server)
        said = asyncio.create_task(run_program(program, name, address))
        if stop_held:
            await generator.held.wait()
            await server.stop(None)
        return await said

    yield scenario
    for server in servers:
        await server.stop(None)


async def run_program(program: Path, name: str, address: str) -> Any:
    """Runs the program in a process of its own; it ends by itself."""
    node = shutil.which("node")
    assert node is not None
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        node, str(program), name, address, stdout=pipe, stderr=pipe
    )
    out, err = await process.communicate()
    assert (process.returncode, err.decode()) == (0, "")
    return json.loads(out)


async def test_models_are_listed(run: Run) -> None:
    """Every field of a model, 64-bit ones as bigint."""
    (model,) = ScriptedGenerator().served
    said = await run("models", ScriptedGenerator())

    assert said.pop("$typeName") == "arborist.v1.Model"
    assert said == {
        "id": model.id,
        "contextLength": model.context_length,
        "vocabSize": model.vocab_size,
        "createdS": "7n",
        "speculation": True,
    }


async def test_a_completion_is_what_the_python_client_gets(run: Run) -> None:
    """The server reads the same request from both clients, and both read the same output."""
    generator = ScriptedGenerator()
    said = await run("complete", generator)

    server = grpc.aio.server()
    servicer = GenerationServicer(Completions(generator, TOKENIZER, LIMITS))
    pb_grpc.add_GenerationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        expected = await client.complete(
            "abc",
            model="tiny",
            max_tokens=5,
            temperature=0.5,
            top_k=7,
            seed=2**64 - 1,
            logit_bias={5: 1.5},
            stop=["zz"],
            stop_token_ids=[9],
            min_tokens=1,
            logprobs=2,
            ignore_eos=True,
            speculation=Speculation(True, 2, 3, 4, "chain"),
            traceparent=f"00-{'a' * 32}-{'b' * 16}-01",
        )
    await server.stop(None)

    sent, sent_by_python = generator.requests
    assert sent.client_key == client_key([("authorization", "Bearer secret")], "")
    assert (sent.sampling, sent.seed) == (sent_by_python.sampling, 2**64 - 1)
    for name in ("prompt_token_ids", "max_tokens", "speculation", "stop_token_ids", "ignore_eos"):
        assert getattr(sent, name) == getattr(sent_by_python, name)
    assert sent.traceparent == sent_by_python.traceparent != ""
    assert said == {
        "seed": f"{expected.started.seed}n",
        "text": expected.text,
        "tokenIds": list(expected.token_ids),
        "logprobs": [[one.logprob, [t.token_id for t in one.top]] for one in expected.logprobs],
        "totalMs": [one.times.total_ms for one in expected.rounds],
        "length": expected.summary.finish_reason == "length",
        "tau": expected.summary.speculation.tau,
    }


async def test_a_stream_tells_start_rounds_and_end(run: Run) -> None:
    """The events come in order, each with its own type."""
    assert await run("stream", ScriptedGenerator()) == [
        ["started", 3],
        ["round", -1, [5, 6]],
        ["round", 0, [7]],
        ["summary", 3],
    ]


async def test_chat_messages_are_rendered_by_the_server(run: Run) -> None:
    """A conversation becomes the prompt that the Python client's would."""
    generator = ScriptedGenerator()

    assert await run("chat", generator) == len(generator.requests[0].prompt_token_ids) > 1


async def test_a_schema_reaches_the_generator(run: Run) -> None:
    """`responseFormat` carries the JSON text of a schema."""
    generator = ScriptedGenerator()
    await run("schema", generator)
    given = generator.requests[0].json_schema

    assert given is not None
    assert json.loads(given)["properties"] == {"a": {"type": "integer"}}


@pytest.mark.parametrize("name", ["signal", "leave", "close"])
async def test_every_way_of_cancelling_frees_the_generation(run: Run, name: str) -> None:
    """An AbortSignal, leaving the loop, and closing the client all end the work at the server."""
    generator = ScriptedGenerator(hold_at=1)
    said = await run(name, generator)
    await asyncio.wait_for(generator.closed.wait(), 30)

    assert [one.closed for one in generator.generations] == [True]
    if name == "signal":
        assert (said[0], said[1]["code"]) == (1, "CANCELLED")
    elif name == "close":
        # Connecting anew is what the call after it did.
        assert (said[0]["code"], said[1]) == ("CANCELLED", 1)
    else:
        assert said == 1


async def test_a_signal_that_was_aborted_before_sends_nothing(run: Run) -> None:
    """Every call fails as cancelled, and the server hears of none."""
    generator = ScriptedGenerator()

    assert [one["code"] for one in await run("aborted", generator)] == ["CANCELLED"] * 2
    assert generator.requests == []


async def test_a_call_ends_at_its_deadline(run: Run) -> None:
    """The client's own limit and the call's both end a call that is held."""
    said = await run("deadline", ScriptedGenerator(hold_at=1))

    assert [one["code"] for one in said] == ["DEADLINE_EXCEEDED"] * 2
    assert [one["reason"] for one in said] == ["DEADLINE_EXCEEDED"] * 2


async def test_what_the_server_refuses_names_the_field(run: Run) -> None:
    """Code, reason, field, value and limit are those of the server's error table."""
    generator = ScriptedGenerator()
    said = await run("refused", generator)

    assert generator.requests == []
    assert {(one["code"], one["reason"]) for one in said} == {("INVALID_ARGUMENT",) * 2}
    assert [one["field"] for one in said] == ["speculation.depth", "temperature", "prompt"]
    assert said[0]["message"] == "speculation.depth = 7: must be an integer in [1, 6]"
    assert said[0]["metadata"]["limit"] == "an integer in [1, 6]"


async def test_a_full_server_says_when_to_retry(run: Run) -> None:
    """The advice of RetryInfo comes in milliseconds."""
    full = ResourceExhaustedError("all places are taken", retry_after_ms=1250)
    said = await run("fails", ScriptedGenerator(refusal=full))

    assert (said["code"], said["reason"]) == ("RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED")
    assert (said["message"], said["retryAfterMs"]) == ("all places are taken", 1250)


async def test_a_failure_in_the_middle_keeps_its_reason(run: Run) -> None:
    """An error behind the first rounds is told like one before them."""
    broken = SessionFailedError("the target's logits are not finite")
    said = await run("fails", ScriptedGenerator(failure=broken))

    assert (said["code"], said["reason"]) == ("INTERNAL", "SESSION_FAILED")
    assert (said["message"], said["retryAfterMs"]) == (broken.message, 0)


async def test_a_server_that_goes_away_is_unavailable(run: Run) -> None:
    """A connection that is lost in the middle is told from a server that was never there."""
    said = await run("fails", ScriptedGenerator(hold_at=1), stop_held=True)

    assert said["code"] == "UNAVAILABLE"
    assert "was lost" in said["message"]


async def test_no_server_is_told_with_advice(program: Path) -> None:
    """Nobody at the address: the error says what to start."""
    said = await run_program(program, "fails", "127.0.0.1:9")

    assert said["code"] == "UNAVAILABLE"
    assert said["message"].startswith("no server answers at 127.0.0.1:9: start one with")


async def test_what_no_message_can_carry_is_refused_by_name(run: Run) -> None:
    """Nothing is sent, the field is named as the server names it, and no text is shown."""
    generator = ScriptedGenerator()
    said = await run("unfit", generator)

    assert generator.requests == []
    assert {one["code"] for one in said} == {"INVALID_ARGUMENT"}
    assert [one["message"] for one in said] == [
        "max_tokens = 1099511627776: must be a 32-bit integer",
        "token_ids[1] = 1.5: must be a 32-bit integer",
        "prompt = text: must be text that UTF-8 can carry",
        "messages[0].content = text: must be text that UTF-8 can carry",
        "stop[1] = text: must be text that UTF-8 can carry",
        "stop_token_ids[0] = 2147483648: must be a 32-bit integer",
        "seed = 18446744073709551616: must be an unsigned 64-bit bigint",
        "speculation.top_k = 0.5: must be a 32-bit integer",
        "logit_bias = an object: must be a number for each 32-bit token id",
        "seed = text: must be an unsigned 64-bit bigint",
        "prompt = undefined: must be text, token ids or messages",
        "prompt = a mixture: must be text, token ids or messages",
        "address = http://: must be host:port or https://host:port",
        "apiKey = text: must be visible ASCII characters, at least one",
    ]
