"""The accept walk against enumeration of every path."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.naive import naive_accept, trees

from arborist.core.accept import Acceptance, accept


@given(trees(), st.data())
@settings(max_examples=300, deadline=None)
def test_the_walk_equals_enumerating_paths(
    case: tuple[list[int], list[int]], data: st.DataObject
) -> None:
    """The longest path the target agrees with, and the target's token after it."""
    tokens, parents = case
    size = len(tokens) + 1
    highest = max(tokens, default=0) + 1
    drawn = st.lists(st.integers(0, min(highest, 4)), min_size=size, max_size=size)
    node_tokens = data.draw(drawn)
    accepted, bonus = naive_accept(tokens, parents, node_tokens)
    assert accept(tokens, parents, node_tokens) == Acceptance(accepted, bonus)


@given(trees(), st.data())
def test_accepted_tokens_and_bonus_are_the_targets_own(
    case: tuple[list[int], list[int]], data: st.DataObject
) -> None:
    """What is committed is what the target says after each committed token, whatever was drafted.

    The target is a function of the path alone, so any tree commits a prefix of the same text.
    """
    tokens, parents = case
    salt = data.draw(st.integers(0, 1000))

    def target(path: tuple[int, ...]) -> int:
        return hash((salt, path)) % 4

    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tokens, parents, strict=True):
        paths.append((*paths[parent], token))
    outcome = accept(tokens, parents, [target(path) for path in paths])
    committed = [*(tokens[node - 1] for node in outcome.accepted_nodes), outcome.bonus]
    alone: tuple[int, ...] = ()
    for token in committed:
        assert token == target(alone)
        alone = (*alone, token)


def test_nothing_drafted_gives_the_bonus_alone() -> None:
    """The root's token is committed even without a tree."""
    assert accept([], [], [7]) == Acceptance((), 7)


def test_a_match_on_another_branch_does_not_count() -> None:
    """A node is accepted only below accepted nodes."""
    tokens, parents = [1, 2, 5], [0, 0, 2]
    assert accept(tokens, parents, [1, 9, 5, 0]) == Acceptance((1,), 9)
    assert accept(tokens, parents, [2, 9, 5, 0]) == Acceptance((2, 3), 0)
