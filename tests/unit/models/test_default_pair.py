"""The shipped pair is whole, small enough, and speaks its own chat format."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from arborist.common.default_pair import default_pair_directory
from arborist.draft.checkpoint import load_head

MIB = 1024 * 1024


def test_the_pair_is_small_enough_to_ship() -> None:
    """At most 40 MiB together, no file over 14 MB, weights as safetensors only."""
    files = [path for path in default_pair_directory().rglob("*") if path.is_file()]

    assert sum(path.stat().st_size for path in files) <= 40 * MIB
    assert max(path.stat().st_size for path in files) <= 14_000_000
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth")]


def test_the_head_belongs_to_the_target() -> None:
    """Official EAGLE tensor names, nothing missing, the target's width and vocabulary."""
    folder = default_pair_directory()
    target = json.loads((folder / "target" / "config.json").read_text())

    head, _ = load_head(folder / "head")

    assert head.config.hidden_size == target["hidden_size"]
    assert head.config.vocab_size == target["vocab_size"]


@pytest.mark.parametrize("text", ["Hello there", "def f(x):\n    return x + 1\n", "é 日本 1234"])
def test_prompts_begin_with_bos_as_in_training(text: str) -> None:
    """Plain text and chats alike; without it the head accepts a fifth less."""
    tokenizer = AutoTokenizer.from_pretrained(default_pair_directory() / "target")

    plain = tokenizer(text).input_ids
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=True
    )["input_ids"]

    assert plain[0] == tokenizer.bos_token_id
    assert plain.count(tokenizer.bos_token_id) == 1
    assert chat[0] == tokenizer.bos_token_id
    assert chat.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(plain, skip_special_tokens=True) == text
