"""The official `openai` client, unchanged, over real HTTP: it gets what gRPC's clients get."""

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel
from tests.integration.http_server import MODEL, BothDoors, both_doors
from tests.integration.loopback import until

from arborist.client import Client, Completion, Message, Speculation

# The embedded pair on a machine that may be busy.
pytestmark = pytest.mark.timeout(300)

TEXT = "Once upon a time"
QUESTION = "What is a mutex?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
LENGTH = 12


@pytest.fixture(scope="module")
def doors() -> Iterator[BothDoors]:
    """One server for the whole file; at the end nothing may be left in a worker."""
    with both_doors() as served:
        yield served
        served.wait_idle()


@pytest.fixture(scope="module")
def client(doors: BothDoors) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"{doors.url}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def plain(doors: BothDoors) -> Iterator[Any]:
    """Plain decoding over gRPC: no draft."""
    with Client(doors.address) as one:

        def complete(prompt: Any, **options: Any) -> Completion:
            options = {"max_tokens": LENGTH, **options}
            return one.complete(prompt, speculation=Speculation(enabled=False), **options)

        yield complete


def test_models_are_listed(client: openai.OpenAI) -> None:
    """One model, by its name."""
    assert [one.id for one in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "arborist"


def test_a_chat_says_what_grpc_says(client: openai.OpenAI, plain: Any) -> None:
    """Whole and streamed, speculation on and off: the text of plain decoding."""
    expected = plain([Message("user", QUESTION)])
    for speculation in ("on", "off"):
        options: dict[str, Any] = {
            "model": MODEL,
            "messages": MESSAGES,
            "max_completion_tokens": LENGTH,
            "extra_body": {"speculation": speculation},
        }
        whole = client.chat.completions.create(**options)
        assert whole.choices[0].message.content == expected.text
        assert whole.choices[0].finish_reason == "length"
        assert whole.usage is not None
        assert whole.usage.prompt_tokens == expected.started.prompt_tokens
        assert whole.usage.completion_tokens == LENGTH

        with client.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        ) as stream:
            *said, last = list(stream)
        text = "".join(one.choices[0].delta.content or "" for one in said)
        assert text == expected.text
        assert last.usage == whole.usage
        drafted = (last.model_extra or {})["metrics"].get("speculative_decoding")
        assert (drafted is not None) == (speculation == "on")


def test_acceptance_adds_up(client: openai.OpenAI) -> None:
    """VLLM's numbers fit together, as load generators check."""
    answer = client.completions.create(
        model=MODEL, prompt=TEXT, max_tokens=32, extra_body={"ignore_eos": True}
    )
    told = (answer.model_extra or {})["metrics"]["speculative_decoding"]
    histogram = told["acceptance_histogram"]

    assert sum(histogram) == told["num_spec_steps"]
    accepted = sum(length * rounds for length, rounds in enumerate(histogram))
    assert accepted == told["num_accepted_draft_tokens"] <= told["num_draft_tokens"]
    assert len(histogram) == told["num_spec_tokens"] + 1
    assert told["mean_acceptance_length"] == pytest.approx(1 + accepted / sum(histogram))
    assert 1 < told["mean_acceptance_length"] <= told["num_spec_tokens"] + 1


def test_completions_take_and_give_token_ids(client: openai.OpenAI, plain: Any) -> None:
    """Ids as prompt and as answer; several prompts are several choices, in order."""
    prompts = [[5, 6, 7], [300, 20]]
    expected = [plain(one).token_ids for one in prompts]
    answer = client.completions.create(
        model=MODEL,
        prompt=prompts,
        max_tokens=LENGTH,
        extra_body={"return_token_ids": True},
    )

    told = [one.model_extra or {} for one in answer.choices]
    assert [tuple(one["token_ids"]) for one in told] == expected
    assert [one["prompt_token_ids"] for one in told] == prompts
    assert [one.index for one in answer.choices] == [0, 1]


def test_a_seed_fixes_every_choice(client: openai.OpenAI, plain: Any) -> None:
    """Same seed, same outputs; the first is gRPC's, the others differ; a told seed comes back."""
    options: dict[str, Any] = {"model": MODEL, "prompt": TEXT, "temperature": 1.0, "top_p": 0.95}
    first, second = (
        client.completions.create(**options, n=3, seed=11, max_tokens=LENGTH) for _ in range(2)
    )
    texts = [one.text for one in first.choices]
    assert texts == [one.text for one in second.choices]
    assert len(set(texts)) == 3
    assert texts[0] == plain(TEXT, temperature=1.0, top_p=0.95, seed=11).text

    drawn = client.completions.create(**options, max_tokens=LENGTH).choices[0]
    seed = (drawn.model_extra or {})["seed"]
    again = client.completions.create(**options, max_tokens=LENGTH, seed=seed)
    assert again.choices[0].text == drawn.text


def test_stop_strings_end_the_text(client: openai.OpenAI, plain: Any) -> None:
    """Before the first of them, whole and streamed."""
    text = plain(TEXT).text
    stop = text[len(text) // 2 :][:3]
    expected = text[: text.index(stop)]
    options: dict[str, Any] = {
        "model": MODEL,
        "prompt": TEXT,
        "max_tokens": LENGTH,
        "stop": ["\0never", stop],
    }
    whole = client.completions.create(**options).choices[0]
    with client.completions.create(**options, stream=True) as stream:
        parts = [one.choices[0] for one in stream]

    assert (whole.text, whole.finish_reason) == (expected, "stop")
    assert "".join(one.text for one in parts) == expected
    assert parts[-1].finish_reason == "stop"


def test_logprobs_are_those_of_the_tokens(client: openai.OpenAI, plain: Any) -> None:
    """Greedy tokens are the most probable; texts add up; chat has the same numbers in its shape."""
    options: dict[str, Any] = {"model": MODEL, "max_tokens": 8}
    told = client.completions.create(**options, prompt=TEXT, logprobs=3).choices[0]
    with client.completions.create(**options, prompt=TEXT, logprobs=3, stream=True) as stream:
        streamed = [one.choices[0].logprobs for one in stream]
    logprobs = told.logprobs
    assert logprobs is not None
    assert logprobs.tokens
    assert logprobs.token_logprobs
    assert logprobs.top_logprobs
    assert "".join(logprobs.tokens).startswith(told.text)
    for own, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert own == max(top.values())
        assert sum(math.exp(one) for one in top.values()) <= 1.0 + 1e-5
    parts = [one.token_logprobs for one in streamed if one is not None]
    assert [value for part in parts for value in part or ()] == pytest.approx(
        logprobs.token_logprobs
    )

    chat = client.chat.completions.create(
        **options, messages=MESSAGES, logprobs=True, top_logprobs=2
    ).choices[0]
    assert chat.logprobs is not None
    content = chat.logprobs.content or []
    assert len(content) == 8
    for one in content:
        assert one.logprob == one.top_logprobs[0].logprob
        assert one.token == one.top_logprobs[0].token
    said = b"".join(bytes(one.bytes or ()) for one in content).decode(errors="replace")
    assert said.startswith(chat.message.content or "")


def test_processors_are_exact_with_speculation(client: openai.OpenAI) -> None:
    """Penalties, biases and end tokens give the same text with a draft and without."""
    options: dict[str, Any] = {
        "model": MODEL,
        "prompt": TEXT,
        "max_tokens": 24,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "logit_bias": {"300": 5, "20": -100},
    }
    extra = {"repetition_penalty": 1.2, "min_tokens": 20, "stop_token_ids": [7], "min_p": 0.02}
    seeded: dict[str, Any] = {"temperature": 0.9, "seed": 3}
    for sampling in ({}, seeded):
        texts = {
            client.completions.create(
                **options, **sampling, extra_body={**extra, "speculation": one}
            )
            .choices[0]
            .text
            for one in ("on", "off")
        }
        assert len(texts) == 1


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    """The exceptions that people catch, with the body's parts."""
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt=TEXT)
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model=MODEL, prompt=TEXT, max_tokens=0)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, reasoning_effort="high")
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, extra_body={"depht": 3}
        )
    with pytest.raises(openai.APIStatusError) as large:
        client.completions.create(model=MODEL, prompt="x" * (1 << 20))

    assert (missing.value.param, missing.value.code) == ("model", "UNKNOWN_MODEL")
    assert (bad.value.param, bad.value.type) == ("max_tokens", "invalid_request_error")
    assert refused.value.param == "reasoning_effort"
    assert unknown.value.param == "depht"
    assert large.value.status_code == 413


async def test_sixty_four_at_once_get_what_one_gets(doors: BothDoors, plain: Any) -> None:
    """Half of them streamed, a quarter sampled: each its own text."""
    prompts = [f"{TEXT} {number % 8}" for number in range(64)]

    def options(number: int) -> dict[str, Any]:
        return {"temperature": 0.8, "seed": number % 8} if number % 4 == 0 else {}

    async with openai.AsyncOpenAI(base_url=f"{doors.url}/v1", api_key="none") as client:

        async def one(number: int) -> str:
            made: dict[str, Any] = {
                "model": MODEL,
                "prompt": prompts[number],
                "max_tokens": 8,
                **options(number),
            }
            if number % 2:
                answer = await client.completions.create(**made)
                return answer.choices[0].text
            async with await client.completions.create(**made, stream=True) as stream:
                return "".join([part.choices[0].text async for part in stream])

        texts = await asyncio.gather(*(one(number) for number in range(64)))

    expected: dict[str, str] = {}
    for number, text in enumerate(texts):
        key = json.dumps([prompts[number], options(number)])
        if key not in expected:
            done = await asyncio.to_thread(
                plain, prompts[number], **{"max_tokens": 8, **options(number)}
            )
            expected[key] = done.text
        assert text == expected[key]


async def test_a_client_that_leaves_frees_everything(doors: BothDoors) -> None:
    """Streams and whole answers, left in the middle: the workers keep nothing."""

    async def leave(stream: bool) -> None:
        body = {"prompt": TEXT, "max_tokens": 1500, "ignore_eos": True, "stream": stream}
        async with httpx.AsyncClient(timeout=None) as client:
            call = client.stream("POST", f"{doors.url}/v1/completions", json=body)
            if stream:
                async with call as response:
                    async for _ in response.aiter_lines():
                        break
            else:
                waiting = asyncio.ensure_future(call.__aenter__())
                await until(lambda: doors.running.controller.load()[0] > 0)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)

    for stream in (True, False):
        await leave(stream)
        await until(lambda: doors.running.controller.load() == (0, 0))
    await asyncio.to_thread(doors.wait_idle)


class Verdict(BaseModel):
    """What a model shall fill in."""

    correct: bool
    mark: Literal["good", "fair", "poor"]


def test_a_schema_is_kept_to(client: openai.OpenAI, plain: Any) -> None:
    """The client's own parser gets an object; gRPC without a draft says the same text."""
    parsed = client.chat.completions.parse(
        model=MODEL, messages=MESSAGES, max_completion_tokens=100, response_format=Verdict
    )
    choice = parsed.choices[0]
    assert isinstance(choice.message.parsed, Verdict)
    assert choice.finish_reason == "stop"
    schema = {
        "type": "object",
        "properties": {"correct": {"type": "boolean"}, "mark": {"enum": ["good", "fair", "poor"]}},
        "required": ["correct", "mark"],
        "additionalProperties": False,
    }
    told = plain([Message("user", QUESTION)], max_tokens=100, json_schema=schema)
    assert told.text == choice.message.content
    assert told.summary.finish_reason == "eos"


def test_any_object_may_be_asked_for(client: openai.OpenAI) -> None:
    """Streamed: the text is an object, or its beginning when the tokens ended."""
    stream = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_completion_tokens=40,
        response_format={"type": "json_object"},
        stream=True,
    )
    chunks = list(stream)
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text.startswith("{")
    if chunks[-1].choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_a_schema_that_cannot_be_compiled_is_a_bad_request(client: openai.OpenAI) -> None:
    """400 with the compiler's reason, streamed or not."""
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="Unimplemented keys") as caught:
            client.chat.completions.create(
                model=MODEL, messages=MESSAGES, response_format=wanted, stream=stream
            )
        assert caught.value.param == "response_format"
