"""Loading and using the tokenizer beside a model."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.unit.api.tokenizers import byte_fallback_tokenizer, byte_level_tokenizer
from transformers import AutoTokenizer

from arborist.core.errors import InvalidArgumentError, MismatchError
from arborist.orchestrator.api.incoming import ChatTurn
from arborist.orchestrator.api.tokenizer import Tokenizer, load_tokenizer


def test_a_saved_tokenizer_encodes_as_transformers_does(tmp_path: Path) -> None:
    """Ids are exactly those of `tokenizer(text).input_ids`, template included."""
    byte_level_tokenizer()._backend.save_pretrained(tmp_path)
    loaded, reference = load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)

    assert loaded is not None
    for text in ("abc end", "é😀", "<|user|>hi", "  spaces  "):
        assert loaded.encode(text) == reference(text).input_ids
        assert loaded.decode(loaded.encode(text)) == reference.decode(
            reference(text).input_ids, skip_special_tokens=True
        )
    ids = loaded.render_chat([ChatTurn("user", "abc")])
    assert ids == reference("<|user|>abc<|end|><|assistant|>").input_ids


def test_a_folder_without_tokenizer_has_none(tmp_path: Path) -> None:
    """Such a model takes and gives token ids only."""
    (tmp_path / "config.json").write_text("{}")

    assert load_tokenizer(str(tmp_path)) is None


def test_a_broken_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    """The line names the folder."""
    (tmp_path / "tokenizer.json").write_text("{ not json")

    with pytest.raises(MismatchError) as caught:
        load_tokenizer(str(tmp_path))

    assert str(tmp_path) in caught.value.message
    assert "\n" not in caught.value.message


def test_no_chat_template_is_said_clearly() -> None:
    """A completion model refuses messages."""
    with pytest.raises(InvalidArgumentError, match="no chat template"):
        byte_fallback_tokenizer().render_chat([ChatTurn("user", "a")])


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), byte_fallback_tokenizer()])
@pytest.mark.parametrize("text", ["abc", "b a a end c", "aé", "日本 c", "end\n"])
def test_texts_of_single_tokens_make_up_the_text(tokenizer: Tokenizer, text: str) -> None:
    """Their bytes side by side are the text's, whatever they are cut through."""
    ids = tokenizer.encode(text)
    said = b"".join(tokenizer.token_bytes(one) for one in ids)

    assert said.decode().lstrip(" ") == tokenizer.decode(ids).lstrip(" ")
    whole = [one for one in ids if "\N{REPLACEMENT CHARACTER}" not in tokenizer.token_text(one)]
    assert all(tokenizer.token_text(one).encode() == tokenizer.token_bytes(one) for one in whole)


def test_special_tokens_have_their_name() -> None:
    """They have no text in an output, but log-probs must call them something."""
    tokenizer = byte_level_tokenizer()

    assert tokenizer.token_text(0) == "<|end|>"
    assert tokenizer.token_text(10**6) == ""


def test_a_token_that_was_told_before_is_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probs name the same few tokens in every round, on the loop that serves everybody."""
    tokenizer = byte_level_tokenizer()
    decode, decoded = tokenizer.decode, list[Sequence[int]]()

    def counted(ids: Sequence[int]) -> str:
        decoded.append(ids)
        return decode(ids)

    monkeypatch.setattr(tokenizer, "decode", counted)
    first = [(tokenizer.token_text(one), tokenizer.token_bytes(one)) for one in range(20)]
    num_decoded = len(decoded)

    assert num_decoded
    assert first == [(tokenizer.token_text(one), tokenizer.token_bytes(one)) for one in range(20)]
    assert len(decoded) == num_decoded
