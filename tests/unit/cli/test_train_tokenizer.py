"""`arborist train-tokenizer`: from a few lines of text to the tokenizer of a target."""

import gzip
import json
from pathlib import Path

import pytest
import typer
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from arborist.cli import train_tokenizer
from arborist.common.default_pair import default_pair_directory
from arborist.core.errors import InvalidArgumentError
from arborist.training.records import chat_prompt

LINES = [f"Tree number {number} has leaves, and every leaf hangs from it." for number in range(30)]
ODD = "  Größe: 日本 2024\n\tx = {'a': 10}  🌳 <|nothing|>"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with plain text, packed, and a record of a chat."""
    folder = tmp_path / "texts"
    folder.mkdir()
    with gzip.open(folder / "plain.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": line}) + "\n" for line in LINES)
    chat = {"prompt": "Which tree speaks?", "response": "Fangorn speaks, Fangorn."}
    (folder / "chat.jsonl").write_text(json.dumps(chat) + "\n")
    return folder


def run(*words: object) -> Result:
    """Runs the command."""
    app = typer.Typer()
    train_tokenizer.register(app)
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_tokenizer_is_of_the_default_pairs_kind(texts: Path, tmp_path: Path) -> None:
    """Everything but what was learnt is as in the tokenizer of the default pair."""
    out = tmp_path / "tokenizer"
    result = run(texts, "--out", out, "--vocab-size", 300)
    assert result.exit_code == 0, result.exception
    assert "tokens=300 of 300" in result.output
    parts = []
    for folder in (out, default_pair_directory() / "target"):
        whole = json.loads((folder / "tokenizer.json").read_text())
        del whole["model"]["vocab"], whole["model"]["merges"]
        parts.append((whole, (folder / "chat_template.jinja").read_text()))
    assert parts[0] == parts[1]


def test_any_text_comes_back_and_chats_are_as_in_training(texts: Path, tmp_path: Path) -> None:
    """Bytes it never saw round-trip; bos comes first; a chat is what training data looks like."""
    run(texts, "--out", tmp_path / "t", "--vocab-size", 300, "--special-token", "<|tool|>")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "t")
    ids = tokenizer.encode(ODD)
    assert ids[0] == tokenizer.bos_token_id == 0
    assert tokenizer.decode(ids[1:]) == ODD
    assert tokenizer.eos_token_id == 1
    assert tokenizer.convert_tokens_to_ids("<|tool|>") == 6
    assert len(tokenizer.encode("<|tool|>", add_special_tokens=False)) == 1
    assert len(tokenizer.encode("hangs from", add_special_tokens=False)) < len("hangs from") / 2
    assert len(tokenizer.encode("2024", add_special_tokens=False)) == 4
    chat = [{"role": "user", "content": "Which?"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == tokenizer.bos_token + chat_prompt("Which?")


def test_the_same_texts_give_the_same_tokenizer(texts: Path, tmp_path: Path) -> None:
    """What is written depends on the texts alone, files or their folder; each of them counts."""
    names = ["whole", "again", "part"]
    files = [texts / "chat.jsonl", texts / "plain.jsonl.gz"]
    for name, paths in zip(names, ([texts], files, files[1:]), strict=True):
        run(*paths, "--out", tmp_path / name, "--vocab-size", 300)
    whole, again, part = ((tmp_path / name / "tokenizer.json").read_bytes() for name in names)
    assert whole == again
    assert whole != part


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ('{"text": "a"}', ("--vocab-size", 261), r"vocab_size = 261: must be in \[262, 1000000\]"),
        ('{"text": "a"}', ("--vocab-size", 1_000_001), "vocab_size = 1000001"),
        ('{"text": "a"}', ("--vocab-size", 300, "--special-token", ""), "special_token = ''"),
        ('{"text": ""}', ("--vocab-size", 300), "texts = no text"),
        ('{"text": 1}', ("--vocab-size", 300), "bad.jsonl:1: needs an object"),
        ("[]", ("--vocab-size", 300), "bad.jsonl:1: needs an object"),
        ("{", ("--vocab-size", 300), "bad.jsonl:1: no JSON"),
        ('{"question": "a"}', ("--vocab-size", 300), "bad.jsonl:1: needs `text`"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, content: str, options: tuple[object, ...], message: str
) -> None:
    """One line with the value and its limit, or the file and line; nothing is written."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text(content + "\n")
    result = run(bad, "--out", tmp_path / "t", *options)
    assert isinstance(result.exception, InvalidArgumentError)
    with pytest.raises(InvalidArgumentError, match=message):
        raise result.exception
    assert not (tmp_path / "t").exists()


def test_a_missing_file_and_an_out_that_is_a_file_are_named(texts: Path, tmp_path: Path) -> None:
    """Neither ends in a traceback."""
    for words, field in (
        ((tmp_path / "none.jsonl", "--out", tmp_path / "t"), "texts"),
        ((tmp_path, "--out", tmp_path / "t"), "texts"),
        ((texts, "--out", texts / "chat.jsonl"), "--out"),
    ):
        result = run(*words, "--vocab-size", 300)
        assert isinstance(result.exception, InvalidArgumentError)
        assert result.exception.message.startswith(f"{field} = ")
