"""What HTTP refuses, by name and before anything starts; what it takes and ignores."""

import json
from typing import Any

import pytest
from tests.contract.scripted_generator import ScriptedGenerator
from tests.unit.api.http_app import app_of, client_of

from arborist.core.errors import UnavailableError
from arborist.orchestrator.api.openai.field_list import IGNORED_FIELDS, REFUSED_FIELDS
from arborist.orchestrator.api.openai.http_limits import HttpLimits

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "abc"}]
SECRET = "the-user's-own-words"


def json_schema(**parts: Any) -> dict[str, Any]:
    """The field that asks for a schema."""
    return {"response_format": {"type": "json_schema", "json_schema": parts}}


def nested(depth: int) -> list[Any]:
    """A list inside a list, and so on."""
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


# Path, what is added to a valid body, the field named, what the message says besides.
REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "unknown field": (TEXT, {"temprature": 1}, "temprature", "no such field"),
    "unknown field that is null": (TEXT, {"x": None}, "x", "no such field"),
    "tools": (CHAT, {"tools": [{"type": "function"}]}, "tools", "no tool calls"),
    "best_of": (TEXT, {"best_of": 2}, "best_of", "must be absent or 1"),
    "echo": (TEXT, {"echo": True}, "echo", "must be absent or False"),
    "a format": (CHAT, {"response_format": "json"}, "response_format", "an object with a type"),
    "type of format": (
        CHAT,
        {"response_format": {"type": SECRET}},
        "response_format.type",
        "'text', 'json_object' or 'json_schema'",
    ),
    "part of a format": (
        TEXT,
        {"response_format": {"type": "text", "schema": {}}},
        "response_format.schema",
        "no such field",
    ),
    "no schema": (
        TEXT,
        json_schema(name="a"),
        "response_format.json_schema.schema",
        "a JSON schema",
    ),
    "a schema that is true": (
        TEXT,
        json_schema(schema=True),
        "response_format.json_schema.schema",
        "a JSON schema",
    ),
    "half strict": (
        CHAT,
        json_schema(schema={}, strict="half"),
        "response_format.json_schema.strict",
        "true or false",
    ),
    "part of a schema": (
        CHAT,
        json_schema(schema={}, schemata=1),
        "response_format.json_schema.schemata",
        "no such field",
    ),
    "a schema too deep": (
        TEXT,
        json_schema(schema={"enum": nested(64)}),
        "response_format.json_schema",
        "nested 65 deep: must be at most 64 deep",
    ),
    "a schema too long": (
        TEXT,
        json_schema(schema={"const": "x" * 65_536}),
        "response_format.json_schema",
        "1 to 65536 bytes",
    ),
    "a schema without an end": (
        TEXT,
        {**json_schema(schema={}), "ignore_eos": True},
        "ignore_eos",
        "false with response_format",
    ),
    "no prompt": (TEXT, {"prompt": None}, "prompt", "absent: must be given"),
    "no messages": (CHAT, {"messages": None}, "messages", "absent: must be given"),
    "empty messages": (CHAT, {"messages": []}, "messages", "at least 1 message"),
    "empty prompt list": (TEXT, {"prompt": []}, "prompt", "0 tokens"),
    "mixed prompt": (TEXT, {"prompt": [1, "a"]}, "prompt", "token ids"),
    "truths for ids": (TEXT, {"prompt": [True]}, "prompt", "token ids"),
    "one empty prompt": (TEXT, {"prompt": ["a", ""]}, "prompt[1]", "0 characters"),
    "id over the vocabulary": (TEXT, {"prompt": [5, 266]}, "prompt[1]", "[0, 266)"),
    "id in one prompt": (TEXT, {"prompt": [[5], [5, 266]]}, "prompt[1][1]", "[0, 266)"),
    "five prompts": (TEXT, {"prompt": ["a"] * 5}, "prompt", "5 prompts: must be 1 to 4 prompts"),
    "n 0": (TEXT, {"n": 0}, "n", "[1, 3]"),
    "n 4": (TEXT, {"n": 4}, "n", "[1, 3]"),
    "text for a number": (TEXT, {"temperature": SECRET}, "temperature", "text: must be a valid"),
    "a fraction of a token": (TEXT, {"max_tokens": 1.5}, "max_tokens", "1.5: must be a valid"),
    "truth for a number": (TEXT, {"n": True}, "n", "true: must be"),
    "max_tokens 81": (TEXT, {"max_tokens": 81}, "max_tokens", "[1, 80]"),
    "its newer name": (TEXT, {"max_completion_tokens": 81}, "max_completion_tokens", "[1, 80]"),
    "two limits": (
        TEXT,
        {"max_tokens": 1, "max_completion_tokens": 2},
        "max_completion_tokens",
        "one of the two",
    ),
    "NaN": (TEXT, {"temperature": float("nan")}, "temperature", "0 or a number in [1e-06, 100]"),
    "infinity": (TEXT, {"top_p": float("inf")}, "top_p", "(0, 1]"),
    "seed over 64 bits": (TEXT, {"seed": 2**64}, "seed", "64-bit"),
    "seed negative": (TEXT, {"seed": -1}, "seed", "64-bit"),
    "five stops": (TEXT, {"stop": ["a"] * 5}, "stop", "at most 4"),
    "empty stop": (TEXT, {"stop": ""}, "stop[0]", "1 to 64 bytes"),
    "stop of another type": (TEXT, {"stop": ["a", 1]}, "stop[1]", "valid string"),
    "penalty": (TEXT, {"presence_penalty": 2.01}, "presence_penalty", "[-2, 2]"),
    "bias of no token": (TEXT, {"logit_bias": {"a": 1}}, "logit_bias", "token ids"),
    "bias too large": (TEXT, {"logit_bias": {"5": 101}}, "logit_bias[5]", "[-100, 100]"),
    "logprobs 21": (TEXT, {"logprobs": 21}, "logprobs", "[0, 20]"),
    "top_logprobs 21": (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "[0, 20]"),
    "top_logprobs alone": (CHAT, {"top_logprobs": 2}, "top_logprobs", "logprobs"),
    "speculation as a word": (TEXT, {"speculation": "fast"}, "speculation", "'on', 'off'"),
    "depth 7": (TEXT, {"speculation": {"depth": 7}}, "speculation.depth", "[1, 6]"),
    "part of speculation": (TEXT, {"speculation": {"m": 7}}, "speculation.m", "no such field"),
    "stream option": (TEXT, {"stream_options": {"x": 1}}, "stream_options.x", "no such field"),
    "role": (CHAT, {"messages": [{"role": "tool", "content": ""}]}, "messages[0].role", "user"),
    "no content": (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content", "absent"),
    "tool calls": (
        CHAT,
        {"messages": [{"role": "assistant", "content": "a", "tool_calls": [1]}]},
        "messages[0].tool_calls",
        "no such field",
    ),
    "an image": (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        "messages[0].content[0].type",
        "'text'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_bad_requests_are_refused_by_name(case: str) -> None:
    """400, the field, what is allowed; nothing starts, and nobody's words are repeated."""
    path, change, field, limit = REFUSED[case]
    generator = ScriptedGenerator()
    body = {**({"prompt": "a"} if path == TEXT else {"messages": MESSAGES}), **change}
    async with client_of(generator) as client:
        # Not the client's own encoder: it knows no NaN.
        response = await client.post(path, content=json.dumps(body))

    error = response.json()["error"]
    assert response.status_code == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", "INVALID_ARGUMENT")
    assert error["param"] == field
    assert error["message"].startswith(f"{field} = ")
    assert limit in error["message"]
    assert SECRET not in response.text
    assert "\n" not in error["message"]
    assert generator.requests == []


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_harmless_fields_are_ignored(path: str) -> None:
    """Every field of the published list, and what is refused when it asks for nothing."""
    body: dict[str, Any] = {"prompt": "a"} if path == TEXT else {"messages": MESSAGES}
    ignored = {name: {"any": "thing"} for name in IGNORED_FIELDS}
    null = dict.fromkeys(REFUSED_FIELDS, None)
    neutral = {name: one.harmless[-1] for name, one in REFUSED_FIELDS.items() if one.harmless}
    async with client_of(ScriptedGenerator()) as client:
        for extra in (ignored, null, neutral, {"response_format": {"type": "text"}}):
            response = await client.post(path, json={**body, **extra})
            assert response.status_code == 200, response.text


async def test_every_refused_field_is_refused() -> None:
    """Each of the published list, by its name and with its reason."""
    generator = ScriptedGenerator()
    async with client_of(generator) as client:
        for name, field in REFUSED_FIELDS.items():
            response = await client.post(TEXT, json={"prompt": "a", name: {"any": "thing"}})
            error = response.json()["error"]
            assert (response.status_code, error["param"]) == (400, name)
            assert field.reason in error["message"]
    assert generator.requests == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'{"prompt": "\\ud800"}', b"\xff", b"[" * 100_000]
)
async def test_bodies_that_are_no_json_object_are_refused(body: bytes) -> None:
    """400 that says so, whatever it is."""
    async with client_of(ScriptedGenerator()) as client:
        response = await client.post(TEXT, content=body)

    assert (response.status_code, response.json()["error"]["param"]) == (400, "body")


async def test_an_unknown_model_is_not_found() -> None:
    """404 names the models served."""
    async with client_of(ScriptedGenerator()) as client:
        response = await client.post(TEXT, json={"model": "other", "prompt": "a"})

    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (404, "model")
    assert "tiny" in error["message"]


async def test_no_model_yet_is_unavailable() -> None:
    """503 with advice when to come again."""
    async with client_of(ScriptedGenerator(served=[])) as client:
        response = await client.post(TEXT, json={"prompt": "a"})
        refused = await client_of(
            ScriptedGenerator(refusal=UnavailableError("the server stops"))
        ).post(TEXT, json={"prompt": "a"})

    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert refused.status_code == 503


class Upload:
    """A client that sends a body in parts and notes how many were taken."""

    def __init__(self, parts: list[bytes]) -> None:
        self.parts = parts
        self.num_taken = 0
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        """Gives the next part."""
        self.num_taken += 1
        last = self.num_taken == len(self.parts)
        body = self.parts[self.num_taken - 1]
        return {"type": "http.request", "body": body, "more_body": not last}

    async def send(self, message: dict[str, Any]) -> None:
        """Notes what is answered."""
        self.sent.append(message)

    async def post(self, path: str, length: int | None) -> int:
        """Sends a request to an application of 100 bytes a body; returns the status."""
        headers = [(b"content-length", str(length).encode())] if length is not None else []
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": headers,
        }
        app = app_of(ScriptedGenerator(), limits=HttpLimits(max_request_bytes=100))
        await app(scope, self.receive, self.send)
        return self.sent[0]["status"]


@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize", "/detokenize"])
async def test_oversized_bodies_are_refused_before_they_are_read(path: str) -> None:
    """By what the request says of itself, else at the part that is too much."""
    announced, streamed = Upload([b"x" * 60] * 1000), Upload([b"x" * 60] * 1000)

    assert await announced.post(path, 60_000) == 413
    assert announced.num_taken == 0
    assert await streamed.post(path, None) == 413
    assert streamed.num_taken == 2
    error = json.loads(streamed.sent[1]["body"])["error"]
    assert (error["code"], error["param"]) == ("REQUEST_TOO_LARGE", "body")
    assert "at most 100 bytes (controller.max_request_bytes)" in error["message"]


@pytest.mark.parametrize(("size", "status"), [(99, 200), (100, 200), (101, 413)])
async def test_a_body_may_be_as_long_as_its_limit(size: int, status: int) -> None:
    """One byte less, all of it, one byte more."""
    body = json.dumps({"prompt": [5], "user": ""})
    body = body[:-2] + "x" * (size - len(body)) + body[-2:]
    assert len(body) == size

    assert await Upload([body.encode()]).post(TEXT, size) == status


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "x", "00000000000000000000000099"])
async def test_strange_lengths_do_no_harm(length: str) -> None:
    """A length is compared, never trusted."""
    upload = Upload([b'{"prompt": [5]}'])

    assert await upload.post(TEXT, length) in (200, 413)  # type: ignore[arg-type]
