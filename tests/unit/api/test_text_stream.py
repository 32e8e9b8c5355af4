"""Text in pieces against the naive way: decode everything, then cut."""

import itertools
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.api.tokenizers import (
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    vocabulary_size,
)

from arborist.orchestrator.api.text_stream import StopMatcher, TextStream
from arborist.orchestrator.api.tokenizer import Tokenizer

KINDS = {"byte_level": byte_level_tokenizer, "byte_fallback": byte_fallback_tokenizer}


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    """Makes each tokenizer once."""
    return KINDS[kind]()


def token_lists(kind: str) -> st.SearchStrategy[list[int]]:
    """Any tokens, broken UTF-8 and specials included, and the tokens of real text."""
    tokenizer = tokenizer_of(kind)
    anything = st.integers(0, vocabulary_size(tokenizer) - 1)
    text = st.text("ab c end é😀\N{REPLACEMENT CHARACTER}", max_size=6).map(tokenizer.encode)
    pieces = st.lists(st.one_of(anything.map(lambda one: [one]), text), max_size=12)
    return pieces.map(lambda parts: [one for part in parts for one in part])


def in_rounds(tokens: list[int], cuts: list[int]) -> list[list[int]]:
    """Splits an output into rounds of at least one token."""
    edges = sorted({cut % len(tokens) for cut in cuts} | {0, len(tokens)}) if tokens else [0, 0]
    return [tokens[a:b] for a, b in itertools.pairwise(edges)]


def run(stream: TextStream, rounds: list[list[int]]) -> tuple[str, int, bool, list[str]]:
    """Pushes rounds until stopped: text, tokens delivered, whether stopped, the pieces."""
    pieces, delivered = [], 0
    for index, tokens in enumerate(rounds):
        delta = stream.push(tokens, last=index == len(rounds) - 1)
        pieces.append(delta.text)
        delivered += delta.num_tokens
        if delta.stopped:
            return "".join(pieces), delivered, True, pieces
    return "".join(pieces), delivered, False, pieces


def naive(tokenizer: Tokenizer, tokens: list[int], stop: list[str]) -> tuple[str, bool]:
    """Cuts the whole text where the first token ends that completes a stop string for certain."""
    whole = tokenizer.decode(tokens)
    for count in range(1, len(tokens) + 1):
        prefix = tokenizer.decode(tokens[:count]) if count < len(tokens) else whole
        # Certain is what every continuation keeps; the whole text is one of them.
        certain = prefix if whole.startswith(prefix) else ""
        starts = [certain.find(one) for one in stop if one in certain]
        if starts:
            return whole[: min(starts)], True
    return whole, False


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_pieces_join_to_the_decode_of_all_tokens(kind: str) -> None:
    """However an output falls into rounds, its pieces are the text of all its tokens."""
    tokenizer = tokenizer_of(kind)

    @settings(max_examples=120, deadline=None)
    @given(token_lists(kind), st.lists(st.integers(0, 50), max_size=8))
    def check(tokens: list[int], cuts: list[int]) -> None:
        text, delivered, stopped, _ = run(TextStream(tokenizer), in_rounds(tokens, cuts))
        assert (text, delivered, stopped) == (tokenizer.decode(tokens), len(tokens), False)

    check()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_piece_is_final(kind: str) -> None:
    """What was handed out begins the text of every continuation."""
    tokenizer = tokenizer_of(kind)

    @settings(max_examples=120, deadline=None)
    @given(token_lists(kind), token_lists(kind))
    def check(tokens: list[int], more: list[int]) -> None:
        given_out = TextStream(tokenizer).push(tokens, last=False).text
        assert tokenizer.decode(tokens + more).startswith(given_out)

    check()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_stop_strings_cut_alike_however_tokens_fall_into_rounds(kind: str) -> None:
    """Text and number of tokens are a function of the tokens alone."""
    tokenizer = tokenizer_of(kind)
    stops = st.lists(st.text("abc end é😀", min_size=1, max_size=4), min_size=1, max_size=3)

    @settings(max_examples=120, deadline=None)
    @given(token_lists(kind), st.lists(st.integers(0, 50), max_size=8), stops)
    def check(tokens: list[int], cuts: list[int], stop: list[str]) -> None:
        rounds = in_rounds(tokens, cuts)
        text, delivered, stopped, _ = run(TextStream(tokenizer, stop), rounds)
        single = run(TextStream(tokenizer, stop), [[one] for one in tokens])
        assert (text, delivered, stopped) == single[:3]
        assert not any(one in text for one in stop)
        whole = tokenizer.decode(tokens)
        assert stopped == any(one in whole for one in stop)
        assert whole.startswith(text)
        if not stopped:
            assert (text, delivered) == (whole, len(tokens))

    check()


@settings(max_examples=120, deadline=None)
@given(token_lists("byte_level"), st.lists(st.text("abc en", min_size=1, max_size=4), min_size=1))
@example([*b""], ["a"])
def test_stop_strings_cut_where_the_naive_way_does(tokens: list[int], stop: list[str]) -> None:
    """The output ends before the first stop string that a token completes."""
    tokenizer = tokenizer_of("byte_level")
    text, _, stopped, _ = run(TextStream(tokenizer, stop), [[one] for one in tokens])

    assert (text, stopped) == naive(tokenizer, tokens, stop)


def test_a_stop_string_across_rounds_is_never_shown_in_part() -> None:
    """Its beginning is held back until it is certain, then dropped with it."""
    tokenizer = tokenizer_of("byte_level")
    stream = TextStream(tokenizer, ["END"])
    rounds = [tokenizer.encode("okE"), tokenizer.encode("N"), tokenizer.encode("Dxyz")]

    text, delivered, stopped, pieces = run(stream, rounds)

    assert pieces == ["ok", "", ""]
    assert (text, stopped) == ("ok", True)
    assert delivered == 5


def test_what_only_looked_like_a_stop_string_is_shown() -> None:
    """Held-back text comes as soon as the stop string is out of the question, or at the end."""
    tokenizer = tokenizer_of("byte_level")
    stream = TextStream(tokenizer, ["END"])

    assert stream.push(tokenizer.encode("okEN"), last=False).text == "ok"
    assert stream.push(tokenizer.encode("T E"), last=False).text == "ENT "
    assert stream.push(tokenizer.encode("N"), last=True).text == "EN"


def test_an_incomplete_character_waits_for_its_bytes() -> None:
    """No replacement character is shown for a character that is still coming."""
    tokenizer = tokenizer_of("byte_level")
    tokens = tokenizer.encode("a😀b")
    stream = TextStream(tokenizer)

    pieces = [stream.push([one], last=False).text for one in tokens]

    assert pieces == ["a", "", "", "", "😀", "b"]


def test_a_broken_character_at_the_end_becomes_a_replacement_character() -> None:
    """The text equals the decode of all tokens even when they end inside a character."""
    tokenizer = tokenizer_of("byte_level")
    tokens = tokenizer.encode("a😀")[:-1]

    assert TextStream(tokenizer).push(tokens, last=True).text == "a\N{REPLACEMENT CHARACTER}"


def test_the_earliest_of_two_stop_strings_in_one_token_wins() -> None:
    """The output ends before any of the stop strings."""
    tokenizer = tokenizer_of("byte_level")
    tokens = tokenizer.encode("xend")

    delta = TextStream(tokenizer, ["d", "en"]).push(tokens, last=False)

    assert (delta.text, delta.stopped, delta.num_tokens) == ("x", True, len(tokens))


def test_a_model_without_tokenizer_has_empty_text() -> None:
    """Tokens are delivered all the same."""
    delta = TextStream(None).push([1, 2, 3], last=True)

    assert (delta.num_tokens, delta.text, delta.stopped) == (3, "", False)


def test_decoding_works_on_a_window() -> None:
    """A long output costs no more per token than a short one."""

    class Counting:
        byte_ids: frozenset[int] = frozenset()
        special_ids: frozenset[int] = frozenset()
        longest = 0

        def decode(self, token_ids) -> str:
            self.longest = max(self.longest, len(token_ids))
            return "x" * len(token_ids)

    decoder = Counting()
    stream = TextStream(decoder, ["never"])
    text = "".join(stream.push([7], last=False).text for _ in range(1000))

    assert text == "x" * 1000
    assert decoder.longest < 10


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1))
def test_the_matcher_holds_back_no_more_than_a_stop_string_could_need(
    text: str, stop: list[str]
) -> None:
    """What is held back begins a stop string."""
    matcher = StopMatcher(stop)
    shown = "".join(matcher.push(one) for one in text)
    held = matcher.flush()

    if not matcher.found:
        assert shown + held == text
        assert held == "" or any(one.startswith(held) for one in stop)
