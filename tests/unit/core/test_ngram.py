"""N-gram lookup against a naive reference, and what it does at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arborist.core.ngram import MAX_MATCH_TOKENS, MAX_MATCHES, MIN_MATCH_TOKENS, NgramPolicy
from arborist.core.shape import TreeShape
from arborist.core.tree import check_tree

SHAPES = st.builds(TreeShape, st.integers(1, 5), st.integers(1, 4), st.integers(1, 12))


def naive_paths(text: list[int], depth: int) -> list[tuple[int, ...]]:
    """What followed every earlier match of the last tokens: longest first, then most recent."""
    found: list[tuple[int, int, tuple[int, ...]]] = []
    for end in range(len(text) - 1):
        match = 0
        while match < min(MAX_MATCH_TOKENS, end + 1) and text[end - match] == text[-1 - match]:
            match += 1
        if match >= MIN_MATCH_TOKENS:
            longer = list(text)
            for step in range(depth):  # Reading on past the end is reading the copy.
                longer.append(longer[end + 1 + step])
            found.append((-match, -end, tuple(longer[len(text) :])))
    return [path for _, _, path in sorted(found)]


def naive_tree(text: list[int], shape: TreeShape) -> list[tuple[int, ...]]:
    """Nodes as paths, in order, until there are top_k paths or enough nodes."""
    nodes: list[tuple[int, ...]] = []
    used = 0
    for path in naive_paths(text, shape.depth):
        new = [path[:n] for n in range(1, shape.depth + 1) if path[:n] not in nodes]
        used += bool(new)
        nodes += new
        if used == shape.top_k:
            break
    return nodes[: shape.num_draft_tokens]


@given(st.lists(st.integers(0, 2), max_size=30), SHAPES)
@settings(max_examples=300, deadline=None)
def test_a_lookup_equals_the_naive_reference(text: list[int], shape: TreeShape) -> None:
    """The same nodes in the same order, as one tree inside its bounds."""
    tree = NgramPolicy(shape).propose(text)
    check_tree(tree.tokens, tree.parent_indices, shape.num_draft_tokens, vocab_size=3)
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.tokens, tree.parent_indices, strict=True):
        paths.append((*paths[parent], token))
    assert paths[1:] == naive_tree(text, shape)
    assert max(tree.depths) <= shape.depth


@pytest.mark.parametrize("text", [[], [5], [5, 6], [5, 5], [1, 2, 3, 4, 9], [7, 9, 8, 9]])
def test_what_is_new_drafts_nothing(text: list[int]) -> None:
    """Without two tokens that stood together before, the round is a plain one."""
    assert NgramPolicy(TreeShape(3, 2, 6)).propose(text).tokens == []


def test_the_longest_match_comes_before_the_most_recent() -> None:
    """Two tokens agree in both places, three only in the older one."""
    text = [1, 2, 3, 50, 9, 2, 3, 60, 1, 2, 3]
    tree = NgramPolicy(TreeShape(1, 2, 2)).propose(text)
    assert tree.tokens == [50, 60]
    assert tree.parent_indices == [0, 0]


def test_common_beginnings_are_shared() -> None:
    """Two continuations that begin alike are one node and two children."""
    text = [1, 2, 7, 8, 1, 2, 7, 9, 1, 2]
    tree = NgramPolicy(TreeShape(2, 2, 6)).propose(text)
    assert (tree.tokens, tree.parent_indices) == ([7, 9, 8], [0, 1, 1])


def test_a_long_repetition_costs_no_more_than_a_short_one() -> None:
    """Only the best matches are looked at, however many there are."""
    policy = NgramPolicy(TreeShape(3, 4, 12))
    read = 0
    for _ in policy._continuations(np.zeros(5000, dtype=np.int64)):
        read += 1
    assert read == MAX_MATCHES
    assert policy.propose([0] * 20_000).tokens == [0, 0, 0]


def test_a_repetition_is_continued_past_the_end_of_the_text() -> None:
    """A period of two drafts as many levels as are wanted."""
    tree = NgramPolicy(TreeShape(5, 1, 5)).propose([4, 6, 4, 6, 4, 6])
    assert tree.tokens == [4, 6, 4, 6, 4]
    assert tree.parent_indices == [0, 1, 2, 3, 4]
