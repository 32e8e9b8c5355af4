"""Masks of a tree: what a matcher of its own would say at each path, and nothing moves."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arborist.core.errors import InvalidArgumentError, SessionFailedError
from arborist.core.grammar import Grammar, mask_logits, one_line
from arborist.core.processors import make_processors
from arborist.core.sampling import SamplingParams, draw_tokens
from arborist.core.schema_text import check_schema, nesting
from arborist.core.tree import node_paths

VOCAB_SIZE = 20
END = 0
PROMPT = [17, 18, 19]


class Climbing:
    """Allows a token 1 to 3 above the last one, the end behind multiples of four and at the top."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.error = ""

    def allows(self, token: int) -> bool:
        """Whether a token may come next."""
        last = self.taken[-1] if self.taken else 0
        if self.taken and last == END:
            return token == END
        if token == END:
            return bool(self.taken) and (last % 4 == 0 or last == VOCAB_SIZE - 1)
        return 1 <= token - last <= 3

    def try_consume_tokens(self, tokens: list[int]) -> int:
        """Takes what is allowed."""
        for count, token in enumerate(tokens):
            if not self.allows(token):
                return count
            self.taken.append(token)
        return len(tokens)

    def rollback(self, num_tokens: int) -> bool:
        """Gives back."""
        assert 0 < num_tokens <= len(self.taken)
        del self.taken[-num_tokens:]
        return True

    def compute_bitmask(self) -> bytes:
        """Packs `allows`, padded to 32 bits."""
        bits = [self.allows(token) for token in range(VOCAB_SIZE)] + [False] * 12
        return np.packbits(bits, bitorder="little").tobytes()

    def get_error(self) -> str:
        """What a test put there."""
        return self.error

    def deep_copy(self) -> Climbing:
        """Another one at the same place."""
        return copy.deepcopy(self)


def naive(path: Sequence[int]) -> list[bool]:
    """What a fresh matcher says behind a path; all true when it forbids the path itself."""
    matcher = Climbing()
    if matcher.try_consume_tokens(list(path)) < len(path):
        return [True] * VOCAB_SIZE
    return [matcher.allows(token) for token in range(VOCAB_SIZE)]


def unpacked(masks: np.ndarray) -> list[list[bool]]:
    """Masks as booleans."""
    return np.unpackbits(masks, axis=1, bitorder="little")[:, :VOCAB_SIZE].astype(bool).tolist()


def climbing_tree(random: Random, root: int, nodes: int) -> tuple[list[int], list[int]]:
    """A tree in which many nodes are allowed and many are not, siblings distinct."""
    tokens: list[int] = []
    parents: list[int] = []
    for _ in range(nodes):
        parent = random.randrange(len(tokens) + 1)
        above = root if parent == 0 else tokens[parent - 1]
        token = random.choice([END, min(above + random.randrange(1, 5), VOCAB_SIZE - 1)])
        if (parent, token) not in zip(parents, tokens, strict=True):
            tokens.append(token)
            parents.append(parent)
    return tokens, parents


@given(st.integers(0, 10**6), st.integers(0, 3))
def test_masks_of_a_tree_are_those_of_each_path_alone(seed: int, committed: int) -> None:
    """In any tree, behind any number of committed tokens; twice, because nothing moved."""
    random = Random(seed)
    output = [2, 4, 5, 8][: committed + 1]
    grammar = Grammar(Climbing(), len(PROMPT))
    for part in (PROMPT[:2], PROMPT[2:], output[:-1]):
        grammar.append(part)
    paths = node_paths(output[-1], *climbing_tree(random, output[-1], random.randrange(25)))

    expected = [naive([*output[:-1], *path]) for path in paths]

    assert unpacked(grammar.masks(paths)) == expected
    assert unpacked(grammar.masks(paths)) == expected
    assert len(grammar) == len(PROMPT) + committed


def test_the_prompt_is_not_the_grammars() -> None:
    """A path through the prompt's end begins the output there, wherever the chunks were cut."""
    for cut in range(len(PROMPT)):
        grammar = Grammar(Climbing(), len(PROMPT))
        grammar.append(PROMPT[:cut])
        rest = PROMPT[cut:]
        assert unpacked(grammar.masks([rest])) == [naive([])]
        assert unpacked(grammar.masks([[*rest, 3, 4]])) == [naive([3, 4])]


def test_a_forbidden_committed_token_ends_the_session() -> None:
    """A controller that commits what was never drawn gets an error, not a wrong mask."""
    grammar = Grammar(Climbing(), 0)
    grammar.append([2, 9])
    with pytest.raises(SessionFailedError, match="committed token"):
        grammar.masks([[10]])


class Fragile(Climbing):
    """Breaks down behind a token 9, for good."""

    def compute_bitmask(self) -> bytes:
        """The mask, or all zeros."""
        if self.taken and self.taken[-1] == 9:
            self.error = "too many\n states " + "x" * 500
        return bytes(4) if self.error else super().compute_bitmask()

    def rollback(self, num_tokens: int) -> bool:
        """Nothing, once broken."""
        return not self.error and super().rollback(num_tokens)


def test_a_limit_at_a_drafted_node_costs_the_tree_alone() -> None:
    """The reason comes in one line; the root goes on as if the tree had not been."""
    grammar = Grammar(Fragile(), len(PROMPT))
    grammar.append([*PROMPT, 3, 5])
    with pytest.raises(InvalidArgumentError) as caught:
        grammar.masks([[6], [6, 9], [6, 7]])
    assert "too many states xxx" in caught.value.message
    assert caught.value.metadata["field"] == "response_format"
    assert len(caught.value.message) < 350

    assert unpacked(grammar.masks([[6], [6, 7]])) == [naive([3, 5, 6]), naive([3, 5, 6, 7])]
    grammar.append([6])
    assert unpacked(grammar.masks([[8]])) == [naive([3, 5, 6, 8])]


def test_other_words_fit_into_one_line() -> None:
    """Control characters and letters of other scripts are escaped, long ones cut."""
    assert one_line("a\x00b\n é") == "a\\x00b \\xe9"
    assert len(one_line("x" * 500)) == 201


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@given(st.integers(0, 10**6))
def test_masking_excludes_exactly_what_is_forbidden(device: str, seed: int) -> None:
    """Bits beyond the vocabulary do not matter."""
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand(5, VOCAB_SIZE, generator=generator) < 0.5
    scores = torch.randn(5, VOCAB_SIZE, generator=generator)
    packed = np.packbits(np.pad(allowed.numpy(), ((0, 0), (0, 12))), axis=1, bitorder="little")

    masked = scores.clone().to(device)
    mask_logits(masked, packed)

    assert torch.equal(masked.cpu(), scores.masked_fill(~allowed, -torch.inf))


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.9]))
def test_nothing_lifts_what_the_grammar_forbids(seed: int, temperature: float) -> None:
    """Bias and penalties come behind the mask, at every node an output can reach."""
    random = Random(seed)
    params = SamplingParams(
        temperature=temperature, seed=seed, logit_bias=((13, 100.0),), repetition_penalty=0.5
    )
    processors = make_processors(params, len(PROMPT), (), Climbing())
    assert processors is not None
    processors.append(PROMPT)
    paths = node_paths(2, *climbing_tree(random, 2, 12))
    logits = torch.randn(len(paths), VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))
    positions = [len(PROMPT) + len(path) for path in paths]

    tokens, _ = draw_tokens(processors.apply(logits, paths, positions), positions, params)

    for path, token in zip(paths, tokens, strict=True):
        mask = naive(path)
        assert mask[token]
        if not all(mask) and mask[13]:
            assert token == 13


def test_min_tokens_gives_way_where_only_the_end_is_left() -> None:
    """It holds the end back as long as something else may come, no longer."""
    processors = make_processors(SamplingParams(min_tokens=50), 1, (END,), Climbing())
    assert processors is not None
    processors.append([7])
    logits = torch.zeros(2, VOCAB_SIZE)
    paths = [[3, 4], [3, 4, 7, 10, 13, 16]]
    free = processors.apply(logits, paths, [3, 7])
    assert free.isfinite().nonzero().tolist() == [[0, 5], [0, 6], [0, 7], [1, 17], [1, 18], [1, 19]]

    stuck = make_processors(SamplingParams(min_tokens=50), 1, (END,), Climbing())
    assert stuck is not None
    top = [7, 3, 6, 9, 12, 15, 18, 19]
    assert stuck.apply(logits[:1], [top], [8]).isfinite().nonzero().tolist() == [[0, END]]


def test_a_grammar_needs_the_prompts_length() -> None:
    """Otherwise it could not tell where the output begins."""
    with pytest.raises(InvalidArgumentError, match="prompt_length"):
        make_processors(SamplingParams(), 0, (), Climbing())


@pytest.mark.parametrize(
    ("schema", "limit"),
    [
        ("", "1 to 30 bytes"),
        ("{" + " " * 29 + "}", "1 to 30 bytes"),
        ('{"a": [[{}]]}', "at most 3 deep"),
        ("[[[[", "at most 3 deep"),
        ('{"a": }', "valid JSON"),
        ('"text"', "a JSON object"),
        ("true", "a JSON object"),
        ("[{}]", "a JSON object"),
    ],
)
def test_a_bad_schema_is_refused_by_its_size_and_shape(schema: str, limit: str) -> None:
    """Before anybody compiles it."""
    with pytest.raises(InvalidArgumentError) as caught:
        check_schema("json_schema", schema, 30, 3)
    assert caught.value.metadata["limit"] == limit


def test_a_schema_at_the_limits_passes() -> None:
    """Thirty bytes, three deep; brackets inside strings do not nest."""
    check_schema("json_schema", "{" + " " * 28 + "}", 30, 3)
    check_schema("json_schema", '{"a": [{"[[[": "\\"{{{"}]}', 30, 3)
    assert nesting('{"a": [{"[[[": "\\"{{{"}]}') == 3
