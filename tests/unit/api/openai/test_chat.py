"""`/v1/chat/completions`: what is answered, whole and in a stream."""

from typing import Any

import pytest
from tests.contract.scripted_generator import ScriptedGenerator
from tests.unit.api.http_app import TOKENIZER, client_of, events, spoken

from arborist.core.errors import ResourceExhaustedError, SessionFailedError
from arborist.core.logprobs import TokenLogprobs

PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "abc"}]
# What the scripted controller says of speculation, and its deepest tree of 3 levels.
SPECULATION = {
    "mean_acceptance_length": 3.0,
    "draft_acceptance_rate": 4 / 12,
    "acceptance_histogram": [0, 1, 1, 0],
    "num_accepted_draft_tokens": 4,
    "num_draft_tokens": 12,
    "num_spec_steps": 2,
    "num_spec_tokens": 3,
}


async def test_a_whole_answer_has_openais_shape() -> None:
    """One message, why it ended, what was used, and how it was made."""
    generator = ScriptedGenerator(spoken(["ab", "c é"]))
    async with client_of(generator) as client:
        response = await client.post(PATH, json={"model": "tiny", "messages": MESSAGES})

    answer = response.json()
    prompt = len(generator.requests[0].prompt_token_ids)
    output = sum(len(one) for one in spoken(["ab", "c é"]))
    assert response.status_code == 200
    assert (answer["id"], answer["object"], answer["model"]) == (
        "chatcmpl-r-1",
        "chat.completion",
        "tiny",
    )
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "abc é", "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert answer["metrics"]["speculative_decoding"] == SPECULATION
    assert answer["metrics"]["time_to_first_token_ms"] == 5.0
    assert generator.closed.is_set()


async def test_a_stream_says_the_same_in_pieces() -> None:
    """Role, text per round, reason, and counts behind them when they are asked for."""
    generator = ScriptedGenerator(spoken(["ab", "c é"]))
    body = {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    async with client_of(generator) as client:
        chunks = events(await client.post(PATH, json=body))

    *said, counts = chunks
    assert {(one["id"], one["object"]) for one in chunks} == {
        ("chatcmpl-r-1", "chat.completion.chunk")
    }
    assert [one["choices"][0]["delta"] for one in said] == [
        {"role": "assistant", "content": ""},
        {"content": "ab"},
        {"content": "c é"},
        {},
    ]
    reasons = [one["choices"][0]["finish_reason"] for one in said]
    assert reasons == [None, None, None, "length"]
    assert not any("usage" in one for one in said)
    assert counts["choices"] == []
    assert counts["usage"]["completion_tokens"] == 4
    assert counts["metrics"]["speculative_decoding"] == SPECULATION


async def test_usage_may_be_told_all_along() -> None:
    """`continuous_usage_stats` counts tokens in every chunk."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"messages": MESSAGES, "stream": True, "stream_options": options}
    async with client_of(ScriptedGenerator(spoken(["ab", "c"]))) as client:
        chunks = events(await client.post(PATH, json=body))

    assert [one["usage"]["completion_tokens"] for one in chunks] == [0, 1, 2, 2, 2]


async def test_text_that_lags_behind_tokens_makes_no_empty_chunks() -> None:
    """A round whose text could begin a stop string is told with the next one."""
    body = {"messages": MESSAGES, "stream": True, "stop": "END"}
    async with client_of(ScriptedGenerator(spoken(["E", "N", "x", "ENDy"]))) as client:
        chunks = events(await client.post(PATH, json=body))

    assert [one["choices"][0]["delta"].get("content") for one in chunks] == ["", "ENx", None]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_several_choices_are_streamed_together() -> None:
    """Each chunk names its choice; each choice has its own seed, and the first has ours."""
    generator = ScriptedGenerator(spoken(["ab", "c"]))
    body = {"messages": MESSAGES, "n": 3, "seed": 7, "temperature": 1, "stream": True}
    async with client_of(generator) as client:
        chunks = events(await client.post(PATH, json=body))

    texts = {0: "", 1: "", 2: ""}
    for one in chunks:
        choice = one["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {0: "abc", 1: "abc", 2: "abc"}
    seeds = [one.seed for one in generator.requests]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3


async def test_the_prompt_of_several_choices_counts_once() -> None:
    """`usage` adds up outputs, not prompts; times of several outputs are not one time."""
    generator = ScriptedGenerator(spoken(["ab", "c"]), cached_prompt_tokens=3)
    async with client_of(generator) as client:
        answer = (await client.post(PATH, json={"messages": MESSAGES, "n": 2})).json()

    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    assert answer["usage"]["prompt_tokens"] == len(generator.requests[0].prompt_token_ids)
    assert answer["usage"]["completion_tokens"] == 4
    assert list(answer["metrics"]) == ["speculative_decoding"]
    assert answer["metrics"]["speculative_decoding"]["num_spec_steps"] == 4


async def test_messages_become_turns() -> None:
    """Developers are the system; parts are lines; what an answer has besides may be sent back."""
    generator = ScriptedGenerator()
    answered: Any = {"role": "assistant", "content": "x", "refusal": None, "annotations": []}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "s"},
        {"role": "user", "content": parts, "name": "eve"},
        answered,
    ]
    async with client_of(generator) as client:
        response = await client.post(PATH, json={"messages": messages})

    assert response.status_code == 200
    text = "<|system|>s<|end|><|user|>a\nb<|end|><|assistant|>x<|end|><|assistant|>"
    assert list(generator.requests[0].prompt_token_ids) == TOKENIZER.encode(text)


async def test_token_ids_come_when_asked_for() -> None:
    """`return_token_ids` gives prompt and output; in a stream the prompt comes first."""
    generator = ScriptedGenerator(spoken(["ab", "c"]))
    body = {"messages": MESSAGES, "return_token_ids": True}
    async with client_of(generator) as client:
        whole = (await client.post(PATH, json=body)).json()
        chunks = events(await client.post(PATH, json={**body, "stream": True}))

    prompt = list(generator.requests[0].prompt_token_ids)
    output = [token for one in spoken(["ab", "c"]) for token in one]
    assert whole["prompt_token_ids"] == chunks[0]["prompt_token_ids"] == prompt
    assert whole["choices"][0]["token_ids"] == output
    told = [one["choices"][0].get("token_ids", []) for one in chunks]
    assert [token for part in told for token in part] == output


async def test_logprobs_name_tokens_and_bytes() -> None:
    """Own and top log-probs per token; part of a character has exact bytes."""
    half = TOKENIZER.encode("ü")[0]
    (whole,) = TOKENIZER.encode("abc")
    told = [TokenLogprobs(half, -0.5, ((half, -0.5), (whole, -1.5)))]
    generator = ScriptedGenerator([[half]], logprobs=[told])
    body = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2, "max_tokens": 1}
    async with client_of(generator) as client:
        answer = (await client.post(PATH, json=body)).json()
        chunks = events(await client.post(PATH, json={**body, "stream": True}))

    (content,) = answer["choices"][0]["logprobs"]["content"]
    assert generator.requests[0].num_logprobs == 2
    assert content["token"] == "\N{REPLACEMENT CHARACTER}"
    assert content["bytes"] == [0xC3]
    assert content["logprob"] == -0.5
    assert [one["token"] for one in content["top_logprobs"]] == [content["token"], "abc"]
    assert content["top_logprobs"][1] == {"token": "abc", "logprob": -1.5, "bytes": [97, 98, 99]}
    assert chunks[1]["choices"][0]["logprobs"]["content"] == [content]


@pytest.mark.parametrize("stream", [False, True])
async def test_failures_before_the_first_text_have_a_status(stream: bool) -> None:
    """A request that is refused, or fails before it says anything, is no stream yet."""
    full = ScriptedGenerator(refusal=ResourceExhaustedError("full", retry_after_ms=1500))
    broken = ScriptedGenerator(rounds=[], failure=SessionFailedError("broke"))
    body = {"messages": MESSAGES, "stream": stream}
    async with client_of(full) as client:
        refused = await client.post(PATH, json=body)
    async with client_of(broken) as client:
        failed = await client.post(PATH, json=body)

    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "2")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "SESSION_FAILED")
    assert broken.closed.is_set()


async def test_a_failure_in_a_stream_is_its_last_event() -> None:
    """What was said stands; then the error's body, then the end."""
    generator = ScriptedGenerator(spoken(["ab"]), failure=SessionFailedError("broke"))
    async with client_of(generator) as client:
        chunks = events(await client.post(PATH, json={"messages": MESSAGES, "stream": True}))

    assert chunks[1]["choices"][0]["delta"] == {"content": "ab"}
    assert chunks[-1]["error"] == {
        "message": "broke",
        "type": "server_error",
        "param": None,
        "code": "SESSION_FAILED",
    }


async def test_a_refused_choice_ends_the_others() -> None:
    """All choices are admitted, or none."""

    class Small(ScriptedGenerator):
        def generate(self, request):
            if self.generations:
                raise ResourceExhaustedError("full")
            return super().generate(request)

    generator = Small()
    async with client_of(generator) as client:
        response = await client.post(PATH, json={"messages": MESSAGES, "n": 2})

    assert response.status_code == 429
    assert generator.closed.is_set()
