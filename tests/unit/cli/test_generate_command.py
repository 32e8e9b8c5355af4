"""`arborist generate`: what it prints, in process and from a server, and how it fails."""

import asyncio
import json
from pathlib import Path

import grpc.aio
import pytest
from tests.contract.scripted_generator import ScriptedGenerator
from tests.unit.api.tokenizers import byte_level_tokenizer

from arborist.cli.main import main
from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.generation_servicer import GenerationServicer
from arborist.orchestrator.api.validator import RequestLimits
from arborist.v1 import generation_pb2_grpc as pb_grpc

PAIR = Path(__file__).resolve().parents[2] / "golden" / "eagle2"
LOCAL = ["--local", "--target", str(PAIR / "target"), "--draft", str(PAIR / "eagle_head")]
IDS = ["--prompt-ids", "1,2,3,4,5"]


def run(*arguments: str) -> int:
    """Runs the command in this process and returns its exit code."""
    with pytest.raises(SystemExit) as caught:
        main(["generate", *arguments])
    return int(caught.value.code or 0)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    """Runs the command with --json and returns its object."""
    code = run(*arguments, "--json")
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return json.loads(out)


def test_local_output_is_one_object_with_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers belong together, and speculation off gives the same tokens."""
    with_draft = printed(capsys, *LOCAL, *IDS, "--max-tokens", "24", "--ignore-eos")
    plain = printed(
        capsys, *LOCAL, *IDS, "--max-tokens", "24", "--ignore-eos", "--speculation", "off"
    )

    assert with_draft["token_ids"] == plain["token_ids"]
    assert len(with_draft["token_ids"]) == 24
    assert with_draft["text"] == ""
    assert with_draft["finish_reason"] == "length"
    assert with_draft["seed"] == 0
    assert with_draft["usage"] == {"prompt_tokens": 5, "completion_tokens": 24}
    speculation, timing = with_draft["speculation"], with_draft["timing"]
    histogram = speculation["acceptance_histogram"]
    assert sum(histogram) == speculation["rounds"] > 0
    assert sum(i * one for i, one in enumerate(histogram)) == speculation["accepted_tokens"]
    assert speculation["tau"] == speculation["accepted_tokens"] / speculation["rounds"] + 1
    assert set(timing) == {"time_to_first_token_ms", "decode_ms", "total_ms", "tokens_per_s"}
    assert all(one > 0 for one in timing.values())
    assert plain["speculation"]["draft_tokens"] == 0
    assert plain["speculation"]["rounds"] == 23


def test_seeded_sampling_does_not_depend_on_the_tree(capsys: pytest.CaptureFixture[str]) -> None:
    """One seed, one output: for two trees and for none; another seed, another output."""
    sampled = [*LOCAL, *IDS, "--max-tokens", "24", "--ignore-eos", "--temperature", "1"]
    tree = ["--depth", "2", "--top-k", "3", "--num-draft-tokens", "5"]
    large = 2**64 - 1

    outputs = [
        printed(capsys, *sampled, "--seed", str(large), *extra)
        for extra in ([], tree, ["--speculation", "off"])
    ]
    other = printed(capsys, *sampled, "--seed", "1")
    drawn = printed(capsys, *sampled)
    again = printed(capsys, *sampled, "--seed", str(drawn["seed"]))

    assert outputs[0]["token_ids"] == outputs[1]["token_ids"] == outputs[2]["token_ids"]
    assert {one["seed"] for one in outputs} == {large}
    assert other["token_ids"] != outputs[0]["token_ids"]
    assert again["token_ids"] == drawn["token_ids"]


def test_a_model_without_tokenizer_prints_ids(capsys: pytest.CaptureFixture[str]) -> None:
    """Output on stdout, numbers on stderr."""
    assert run(*LOCAL, *IDS, "--max-tokens", "3", "--ignore-eos") == 0
    out, err = capsys.readouterr()

    assert len(out.strip().split(",")) == 3
    assert "3 tokens" in err
    assert "finish_reason=length" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*LOCAL], "exactly one of --prompt, --prompt-ids, --chat"),
        ([*LOCAL, *IDS, "--prompt", "a"], "exactly one of --prompt, --prompt-ids, --chat"),
        ([*LOCAL, "--prompt-ids", "1,x"], "--prompt-ids: must be integers"),
        ([*LOCAL, "--prompt-ids", ""], "prompt = 0 tokens: must be at least 1 token"),
        ([*LOCAL, "--prompt-ids", "99999999999"], "token_ids[0] = 99999999999"),
        ([*LOCAL, "--prompt", "text"], "the model served has no tokenizer"),
        (
            [*LOCAL, *IDS, "--temperature", "nan"],
            "temperature = nan: must be 0 or a number in [1e-06, 100]",
        ),
        ([*LOCAL, *IDS, "--depth", "17"], "speculation.depth = 17"),
        ([*LOCAL, *IDS, "--seed", "-1"], "seed = -1: must be an unsigned 64-bit integer"),
        ([*LOCAL, *IDS, "--max-tokens", "0"], "max_tokens = 0"),
        ([*LOCAL, *IDS, "--max-tokens", "many"], "max-tokens"),
        ([*LOCAL, *IDS, "--dtype", "fp8"], "--dtype: must be one of fp32, bf16, fp16"),
        ([*LOCAL, *IDS, "--device", "tpu"], "device"),
        ([*LOCAL, *IDS, "--address", "x:1"], "--address has no effect with --local"),
        ([*IDS, "--dtype", "bf16"], "--dtype has no effect with a server"),
        ([*LOCAL[:3], *IDS], "--target needs its --draft, or --speculation off"),
        (
            ["--local", "--target", "/no/such/folder", "--speculation", "off", *IDS],
            "/no/such/folder: no such folder",
        ),
        (["--local", "--target", str(PAIR), *IDS, "--speculation", "off"], "has no config.json"),
    ],
)
def test_failures_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """The line says what is wrong; nothing is printed to stdout, no traceback anywhere."""
    code = run(*arguments)
    out, err = capsys.readouterr()

    assert code in (1, 2)
    assert out == ""
    assert message in err
    assert err.startswith("arborist: ")
    assert err.count("\n") == 1


def test_a_server_that_is_not_there_is_one_line(
    capsys: pytest.CaptureFixture[str], unused_tcp_port: int
) -> None:
    """It says where nobody answered and what to start."""
    code = run(*IDS, "--address", f"127.0.0.1:{unused_tcp_port}")
    out, err = capsys.readouterr()

    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert f"no server answers at 127.0.0.1:{unused_tcp_port}" in err
    assert "arborist serve" in err


async def test_a_running_server_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """Text streams to stdout; --json prints the object; refusals are the server's words."""
    tokenizer = byte_level_tokenizer()
    rounds = [tokenizer.encode("ab"), tokenizer.encode("c é")]
    generator = ScriptedGenerator(rounds)
    server = grpc.aio.server()
    pb_grpc.add_GenerationServiceServicer_to_server(
        GenerationServicer(Completions(generator, tokenizer, RequestLimits())), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    address = ["--address", f"127.0.0.1:{port}"]
    try:
        codes = [
            await asyncio.to_thread(run, "--chat", "hello", *address),
            await asyncio.to_thread(run, "--chat", "hello", "--stop", "é", "--json", *address),
            await asyncio.to_thread(run, "--prompt", "a", "--model", "other", *address),
        ]
    finally:
        await server.stop(None)
    out, err = capsys.readouterr()

    assert codes == [0, 0, 2]
    text, answer = out.splitlines()
    assert text == "abc é"
    assert json.loads(answer)["text"] == "abc "
    assert json.loads(answer)["finish_reason"] == "stop"
    assert "model = other: must be one of the models served: tiny" in err
    assert tokenizer.decode(generator.requests[0].prompt_token_ids) == "hello"


async def test_a_schema_reaches_the_server(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """From a file, as it stands there; any object is a flag; a missing file is one line."""
    generator, tokenizer = ScriptedGenerator(), byte_level_tokenizer()
    server = grpc.aio.server()
    pb_grpc.add_GenerationServiceServicer_to_server(
        GenerationServicer(Completions(generator, tokenizer, RequestLimits())), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ask = ["--prompt", "a", "--address", f"127.0.0.1:{port}"]
    file = tmp_path / "schema.json"
    file.write_text('{ "const": "é" }\n', encoding="utf-8")
    try:
        codes = [
            await asyncio.to_thread(run, *ask, "--json-schema", str(file)),
            await asyncio.to_thread(run, *ask, "--json-object"),
            await asyncio.to_thread(run, *ask, "--json-schema", str(tmp_path / "none.json")),
            await asyncio.to_thread(run, *ask, "--json-schema", str(file), "--json-object"),
        ]
    finally:
        await server.stop(None)
    err = capsys.readouterr().err

    assert codes == [0, 0, 2, 2]
    schemas = [one.json_schema for one in generator.requests]
    assert schemas == ['{ "const": "é" }\n', '{"type": "object"}']
    assert "cannot read" in err
    assert "json_object = true: must be false with json_schema" in err
