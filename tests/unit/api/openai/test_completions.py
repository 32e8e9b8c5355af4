"""`/v1/completions`: prompts of every kind, whole and streamed answers."""

import pytest
from tests.contract.scripted_generator import ScriptedGenerator
from tests.unit.api.http_app import TOKENIZER, client_of, events, spoken

from arborist.core.logprobs import TokenLogprobs

PATH = "/v1/completions"


async def test_a_whole_answer_has_openais_shape() -> None:
    """Text, why it ended, what was used."""
    generator = ScriptedGenerator(spoken(["ab", "c"]))
    async with client_of(generator) as client:
        answer = (await client.post(PATH, json={"model": "tiny", "prompt": "abc"})).json()

    assert (answer["id"], answer["object"]) == ("cmpl-r-1", "text_completion")
    assert answer["choices"] == [
        {"index": 0, "text": "abc", "logprobs": None, "finish_reason": "length"}
    ]
    assert answer["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert answer["metrics"]["speculative_decoding"]["num_spec_steps"] == 2


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("abc", [TOKENIZER.encode("abc")]),
        ([5, 6], [[5, 6]]),
        (["ab", "c"], [TOKENIZER.encode("ab"), TOKENIZER.encode("c")]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ],
)
async def test_prompts_are_text_or_token_ids_one_or_several(
    prompt: object, prompts: list[list[int]]
) -> None:
    """Each prompt has n choices, in order, and is counted."""
    generator = ScriptedGenerator(spoken(["a"]))
    async with client_of(generator) as client:
        answer = (await client.post(PATH, json={"prompt": prompt, "n": 2})).json()

    asked = [list(one.prompt_token_ids) for one in generator.requests]
    assert asked == [one for one in prompts for _ in range(2)]
    assert [one["index"] for one in answer["choices"]] == list(range(2 * len(prompts)))
    assert answer["usage"]["prompt_tokens"] == sum(len(one) for one in prompts)


async def test_a_stream_says_the_same_in_pieces() -> None:
    """Text per round, then why it ended."""
    body = {"prompt": "abc", "stream": True}
    async with client_of(ScriptedGenerator(spoken(["ab", "c"]))) as client:
        chunks = events(await client.post(PATH, json=body))

    told = [(one["choices"][0]["text"], one["choices"][0]["finish_reason"]) for one in chunks]
    assert told == [("ab", None), ("c", None), ("", "length")]


async def test_sampling_tells_its_seed() -> None:
    """A drawn seed is reported, whole and streamed, so that the output can be had again."""
    async with client_of(ScriptedGenerator()) as client:
        body = {"prompt": [5], "temperature": 0.5}
        whole = (await client.post(PATH, json=body)).json()
        chunks = events(await client.post(PATH, json={**body, "stream": True}))
        greedy = (await client.post(PATH, json={"prompt": [5]})).json()

    assert whole["choices"][0]["seed"] == chunks[0]["choices"][0]["seed"] == 42
    assert "seed" not in greedy["choices"][0]


async def test_logprobs_are_four_lists() -> None:
    """Tokens, their log-probs, the top ones by text, and where each token's text begins."""
    (abc,), (end,) = TOKENIZER.encode("abc"), TOKENIZER.encode("end")
    told = [
        [TokenLogprobs(abc, -0.5, ((end, -0.25),))],
        [TokenLogprobs(end, -1.0, ((abc, -0.75),))],
    ]
    generator = ScriptedGenerator([[abc], [end]], logprobs=told)
    body = {"prompt": "a", "logprobs": 1, "max_tokens": 2}
    async with client_of(generator) as client:
        whole = (await client.post(PATH, json=body)).json()
        chunks = events(await client.post(PATH, json={**body, "stream": True}))

    assert whole["choices"][0]["logprobs"] == {
        "tokens": ["abc", "end"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{"end": -0.25, "abc": -0.5}, {"abc": -0.75, "end": -1.0}],
        "text_offset": [0, 3],
    }
    offsets = [one["choices"][0]["logprobs"]["text_offset"] for one in chunks[:2]]
    assert offsets == [[0], [3]]


async def test_every_honoured_field_reaches_the_controller() -> None:
    """Nothing that is taken is dropped on the way."""
    generator = ScriptedGenerator()
    body = {
        "prompt": [5],
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "top_k": 4,
        "top_p": 0.75,
        "min_p": 0.25,
        "seed": 2**64 - 1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.5,
        "logit_bias": {"7": -100, "3": 1.5},
        "ignore_eos": True,
        "min_tokens": 2,
        "stop_token_ids": [8],
        "logprobs": 0,
        "speculation": {"depth": 2, "top_k": 3, "num_draft_tokens": 4, "policy": "chain"},
    }
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    async with client_of(generator) as client:
        headers = {"traceparent": traceparent}
        response = await client.post(PATH, json=body, headers=headers)

    assert response.status_code == 200, response.text
    (request,) = generator.requests
    sampling, speculation = request.sampling, request.speculation
    assert request.max_tokens == 9
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (
        0.5,
        4,
        0.75,
        0.25,
    )
    assert request.seed == 2**64 - 1
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
    assert sampling.repetition_penalty == 1.5
    assert sampling.logit_bias == ((3, 1.5), (7, -100.0))
    assert request.ignore_eos
    assert sampling.min_tokens == 2
    assert request.stop_token_ids == (8,)
    assert request.num_logprobs == 0
    assert (speculation.depth, speculation.top_k, speculation.num_draft_tokens) == (2, 3, 4)
    assert speculation.policy == "chain"
    assert request.traceparent == traceparent


@pytest.mark.parametrize(
    ("given", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, '{"type": "object"}'),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"b": 1, "a": "é"}}},
            '{"b": 1, "a": "é"}',
        ),
        (
            {
                "type": "json_schema",
                "json_schema": {"name": "a", "strict": True, "description": None, "schema": {}},
            },
            "{}",
        ),
    ],
)
async def test_a_format_becomes_a_schema(given: dict[str, object], schema: str | None) -> None:
    """OpenAI's three types; properties stay in their order, which is the output's."""
    generator = ScriptedGenerator()
    async with client_of(generator) as client:
        response = await client.post(PATH, json={"prompt": [5], "response_format": given})

    assert response.status_code == 200, response.text
    assert [one.json_schema for one in generator.requests] == [schema]


@pytest.mark.parametrize(
    ("given", "enabled"),
    [("off", False), (False, False), ("on", True), (True, True), ({"enabled": False}, False)],
)
async def test_speculation_is_switched_in_a_word(given: object, enabled: bool) -> None:
    """On and off, as words, truths or an object."""
    generator = ScriptedGenerator()
    async with client_of(generator) as client:
        await client.post(PATH, json={"prompt": [5], "speculation": given})

    assert generator.requests[0].speculation.enabled is enabled


async def test_a_model_without_tokenizer_takes_and_gives_token_ids() -> None:
    """Its text is empty; its ids are all there is to say."""
    generator = ScriptedGenerator([[5, 6], [7]])
    async with client_of(generator, tokenizer=None) as client:
        body = {"prompt": [5], "return_token_ids": True}
        answer = (await client.post(PATH, json=body)).json()
        refused = await client.post(PATH, json={"prompt": "abc"})

    assert answer["choices"][0]["token_ids"] == [5, 6, 7]
    assert answer["choices"][0]["text"] == ""
    assert refused.status_code == 400
    assert "no tokenizer" in refused.json()["error"]["message"]
