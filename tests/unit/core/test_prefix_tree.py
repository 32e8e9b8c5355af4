"""The tree finds the longest known beginning and forgets the ends not used for longest."""

from hypothesis import given, settings
from hypothesis import strategies as st

from arborist.core.prefix_tree import PrefixTree

TOKENS = st.lists(st.integers(0, 2), max_size=12)


def store(tree: PrefixTree, data: dict[int, tuple[object, ...]], scope: str, tokens: list[int]):
    """Inserts a sequence and notes, by slot, the tokens up to the one it holds."""
    begin, slots = tree.insert(scope, tokens)
    for at, slot in enumerate(slots.tolist(), start=begin):
        data[slot] = (scope, *tokens[: at + 1])
    return begin, len(slots)


@given(
    calls=st.lists(
        st.tuples(st.booleans(), st.sampled_from("ab"), TOKENS), min_size=1, max_size=40
    ),
    capacity=st.integers(1, 25),
)
@settings(max_examples=100, deadline=None)
def test_what_is_found_is_what_was_put_there(calls, capacity):
    """A slot that a match returns holds the data of that very beginning of that very scope."""
    tree = PrefixTree(capacity)
    data: dict[int, tuple[object, ...]] = {}
    for is_insert, scope, tokens in calls:
        if is_insert:
            begin, count = store(tree, data, scope, tokens)
            assert begin + count == min(len(tokens), capacity)
        found = tree.match(scope, tokens).tolist()
        assert [data[slot] for slot in found] == [
            (scope, *tokens[: at + 1]) for at in range(len(found))
        ]
        if is_insert:
            assert len(found) == min(len(tokens), capacity)
        assert tree.num_tokens <= capacity
        tree.check_integrity()


def test_sequences_share_what_they_have_in_common():
    """A sequence that parts from a known one inside a run takes slots for its own end alone."""
    tree = PrefixTree(100)
    assert tree.insert("s", [1, 2, 3, 4])[0] == 0
    begin, slots = tree.insert("s", [1, 2, 9])
    assert (begin, len(slots)) == (2, 1)
    assert tree.num_tokens == 5
    assert len(tree.match("s", [1, 2, 3, 4, 5])) == 4
    assert len(tree.match("s", [1, 2, 9, 9])) == 3


def test_scopes_see_nothing_of_each_other():
    """The same tokens in another scope are unknown."""
    tree = PrefixTree(100)
    tree.insert("a", [1, 2, 3])
    assert len(tree.match("b", [1, 2, 3])) == 0
    assert tree.insert("b", [1, 2, 3])[0] == 0


def test_what_was_not_used_for_longest_makes_room():
    """A full tree forgets the end of the sequence that nobody asked for, not the one just read."""
    tree = PrefixTree(6)
    tree.insert("s", [1, 1, 1])
    tree.insert("s", [2, 2, 2])
    tree.match("s", [1, 1, 1])
    tree.insert("s", [3, 3])
    assert len(tree.match("s", [1, 1, 1])) == 3
    assert len(tree.match("s", [2, 2, 2])) == 1
    assert len(tree.match("s", [3, 3])) == 2


def test_the_unused_end_of_a_sequence_makes_room_for_another_end():
    """Of a sequence that fills the cache only the common part stays when another needs the rest."""
    tree = PrefixTree(4)
    tree.insert("s", [1, 2, 3, 4])
    tree.insert("s", [1, 2, 5, 6])
    assert len(tree.match("s", [1, 2, 5, 6])) == 4


def test_a_sequence_longer_than_the_cache_keeps_its_beginning():
    """What does not fit is left out at the end, and the beginning stays usable."""
    tree = PrefixTree(4)
    begin, slots = tree.insert("s", [1, 2, 3, 4, 5, 6])
    assert (begin, len(slots)) == (0, 4)
    assert len(tree.match("s", [1, 2, 3, 4, 5, 6])) == 4


def test_asking_for_a_length_uses_nothing() -> None:
    """Whoever only asks does not keep a sequence from making room."""
    tree = PrefixTree(4)
    tree.insert("s", [1, 1])
    tree.insert("s", [2, 2])
    assert tree.length("s", [1, 1, 1]) == 2
    tree.insert("s", [3, 3])
    assert tree.length("s", [1, 1]) == 0


def test_an_insert_taken_back_leaves_what_was_there_before():
    """Its slots are free again, and so is the scope that it opened."""
    tree = PrefixTree(10)
    tree.insert("s", [1, 2, 3])
    for scope, tokens in (("s", [1, 2, 3, 4]), ("s", [1, 9]), ("s", [7]), ("t", [1, 2])):
        begin, _ = tree.insert(scope, tokens)
        tree.take_back(scope, tokens, begin)
        tree.check_integrity()
        assert tree.num_tokens == 3
    assert len(tree.match("s", [1, 2, 3, 4])) == 3
    assert len(tree.match("t", [1, 2])) == 0
    assert len(tree.insert("t", [5] * 7)[1]) == 7
