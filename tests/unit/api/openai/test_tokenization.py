"""`/tokenize` and `/detokenize`."""

import pytest
from tests.contract.scripted_generator import ScriptedGenerator
from tests.unit.api.http_app import TOKENIZER, client_of


async def test_text_and_messages_become_the_tokens_a_request_would_have() -> None:
    """The same ids as a completion's or a conversation's prompt."""
    generator = ScriptedGenerator()
    messages = [{"role": "user", "content": "abc é"}]
    async with client_of(generator) as client:
        text = (await client.post("/tokenize", json={"prompt": "abc é"})).json()
        chat = (await client.post("/tokenize", json={"messages": messages})).json()
        await client.post("/v1/completions", json={"prompt": "abc é"})
        await client.post("/v1/chat/completions", json={"messages": messages})

    for answer, request in zip((text, chat), generator.requests, strict=True):
        assert answer["tokens"] == list(request.prompt_token_ids)
        assert answer["count"] == len(answer["tokens"])
        assert answer["max_model_len"] == 100


async def test_tokens_are_named_when_asked_for() -> None:
    """`return_token_strs` gives the text of each."""
    body = {"prompt": "abc end<|end|>", "return_token_strs": True}
    async with client_of(ScriptedGenerator()) as client:
        answer = (await client.post("/tokenize", json=body)).json()

    assert answer["token_strs"] == ["abc", " ", "end", "<|end|>"]


async def test_tokens_become_text_again() -> None:
    """What an answer of these tokens would say."""
    ids = TOKENIZER.encode("abc é")
    async with client_of(ScriptedGenerator()) as client:
        answer = (await client.post("/detokenize", json={"model": "tiny", "tokens": ids})).json()

    assert answer == {"prompt": "abc é"}


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/tokenize", {}, 400, "prompt, messages"),
        ("/tokenize", {"prompt": "a", "messages": []}, 400, "prompt, messages"),
        ("/tokenize", {"prompt": ""}, 400, "prompt"),
        ("/tokenize", {"prompt": [1]}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": False}, 400, "add_special_tokens"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [266]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [0, -1]}, 400, "tokens[1]"),
        ("/detokenize", {"tokens": ["a"]}, 400, "tokens[0]"),
    ],
)
async def test_bad_requests_are_refused_by_name(
    path: str, body: dict[str, object], status: int, field: str
) -> None:
    """The status, and the field that is wrong."""
    async with client_of(ScriptedGenerator()) as client:
        response = await client.post(path, json=body)

    assert (response.status_code, response.json()["error"]["param"]) == (status, field)


@pytest.mark.parametrize(
    ("path", "body"), [("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [5]})]
)
async def test_without_a_tokenizer_there_is_no_text(path: str, body: dict[str, object]) -> None:
    """A model of token ids only says so."""
    async with client_of(ScriptedGenerator(), tokenizer=None) as client:
        response = await client.post(path, json=body)

    assert response.status_code == 400
    assert "no tokenizer" in response.json()["error"]["message"]
