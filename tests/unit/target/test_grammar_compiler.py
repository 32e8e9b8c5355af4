"""Compiling is bounded: what takes too much is refused and takes nothing else along."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.api.tokenizers import byte_fallback_tokenizer, byte_level_tokenizer

from arborist.core.errors import InvalidArgumentError
from arborist.core.grammar import Matcher
from arborist.core.schema_text import MAX_SCHEMA_BYTES
from arborist.target.grammar_compiler import GrammarCompiler, GrammarLimits

FINE = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}})
# Short, and all but endless to compile: products and intersections of many automata.
ENDLESS = [
    json.dumps(
        {"allOf": [{"type": "integer", "multipleOf": one} for one in (7, 11, 13, 17, 19, 23)]}
    ),
    json.dumps({"allOf": [{"type": "string", "pattern": f".*{chr(97 + n)}.*"} for n in range(20)]}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, which is all a compiler looks at."""
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level_tokenizer()._backend.save_pretrained(folder)
    return folder


def compiler(folder: Path, **limits: float) -> GrammarCompiler:
    """A compiler for the model in a folder."""
    return GrammarCompiler(str(folder), None, 300, [0], GrammarLimits(**limits))


def allows(matcher: Matcher, token: int) -> bool:
    """Whether a token may come next."""
    return bool(matcher.compute_bitmask()[token >> 3] >> (token & 7) & 1)


@pytest.fixture
def hasty(folder: Path) -> Iterator[GrammarCompiler]:
    """A compiler that gives a schema little time."""
    hasty = compiler(folder, compile_s=0.1)
    yield hasty
    if hasty._ready is not None:
        hasty._ready.trial.close()


@pytest.mark.parametrize("schema", ENDLESS, ids=["multiples", "patterns"])
def test_what_takes_too_long_is_refused(hasty: GrammarCompiler, schema: str) -> None:
    """With the limit; the next schema compiles as if nothing had been."""
    with pytest.raises(InvalidArgumentError, match=r"it takes more than 0\.1 s to compile"):
        hasty.compile(schema)
    hasty.compile(FINE)
    with pytest.raises(InvalidArgumentError, match=r"it takes more than 0\.1 s to compile"):
        hasty.matcher(schema)


def test_what_takes_too_much_memory_is_refused(folder: Path) -> None:
    """With the limit, in bytes."""
    small = compiler(folder, compile_s=20, compile_bytes=4 << 20)
    with pytest.raises(InvalidArgumentError, match="it takes more than 4194304 bytes to compile"):
        small.compile(ENDLESS[1])
    small.compile(FINE)
    assert small._ready is not None
    small._ready.trial.close()


def test_a_lost_trial_is_replaced(hasty: GrammarCompiler) -> None:
    """Its process may die; schemas go on being tried."""
    hasty.compile(FINE)
    assert hasty._ready is not None
    process = hasty._ready.trial._process
    assert process is not None
    process.kill()
    process.wait()

    hasty.compile(json.dumps({"type": "null"}))

    assert hasty._ready.trial._process is not process


def test_copies_of_a_matcher_are_independent(hasty: GrammarCompiler) -> None:
    """A copy moves alone; the schema is compiled once."""
    one = hasty.matcher(FINE).deep_copy()
    start = one.compute_bitmask()
    assert one.try_consume_tokens(byte_level_tokenizer().encode('{"a":1')) > 0
    assert one.compute_bitmask() != start
    assert hasty.matcher(FINE).compute_bitmask() == start
    assert len(hasty._kept) == 1


def test_few_schemas_are_kept(hasty: GrammarCompiler) -> None:
    """The oldest go."""
    for number in range(40):
        hasty.compile(json.dumps({"const": number}))
    assert len(hasty._kept) == 32
    assert json.dumps({"const": 39}) in hasty._kept


def test_a_schema_over_the_limit_is_not_even_tried(hasty: GrammarCompiler) -> None:
    """One byte more than allowed."""
    with pytest.raises(InvalidArgumentError, match="65537 bytes: must be at most 65536 bytes"):
        hasty.compile(" " * (MAX_SCHEMA_BYTES + 1 - len(FINE)) + FINE)
    assert hasty._ready is None
    hasty.compile(" " * (MAX_SCHEMA_BYTES - len(FINE)) + FINE)


def test_words_with_leading_blocks_and_bytes_work_too(tmp_path: Path) -> None:
    """Llama-2's kind of tokenizer: what is not a word comes byte by byte."""
    tokenizer = byte_fallback_tokenizer()
    tokenizer._backend.save_pretrained(tmp_path)
    fallback = GrammarCompiler(str(tmp_path), None, 300, [1], GrammarLimits())
    matcher = fallback.matcher(json.dumps({"enum": ["bé"]}))
    written = [5 + byte for byte in '"bé"'.encode()]

    assert matcher.try_consume_tokens(written) == len(written)
    assert [token for token in range(300) if allows(matcher, token)] == [1]
    assert fallback._ready is not None
    fallback._ready.trial.close()


def test_white_space_is_bounded(hasty: GrammarCompiler) -> None:
    """A space, or a line break with indentation: no model can fill an output with it."""
    tokenizer = byte_level_tokenizer()
    for text, fits in (
        ('{"a":1}', True),
        ('{ "a": 1 }', True),
        ('{\n  "a": 1\n}', True),
        ('{  "a": 1}', False),
        ('{\n\n"a": 1}', False),
        (' {"a": 1}', False),
        ('{"a": 1} ', False),
    ):
        tokens = tokenizer.encode(text)
        assert (hasty.matcher(FINE).deep_copy().try_consume_tokens(tokens) == len(tokens)) == fits


@pytest.mark.parametrize("missing", ["tokenizer", "end token"])
def test_a_target_that_cannot_constrain_says_why(
    folder: Path, tmp_path: Path, missing: str
) -> None:
    """No tokenizer, or nothing that ends an output."""
    place, ends = (tmp_path, [0]) if missing == "tokenizer" else (folder, [])
    lame = GrammarCompiler(str(place), None, 300, ends, GrammarLimits())
    with pytest.raises(InvalidArgumentError, match=rf"response_format = given.*has no {missing}"):
        lame.matcher(FINE)
