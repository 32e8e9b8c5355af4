"""The tree finds the longest known beginning and forgets the ends not used for longest."""

import gc
import random
import sys
from types import FrameType
from typing import Any

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


class Forgetful:
    """A cache by the book: every known beginning with when it was last used, in one table."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used: dict[tuple[str, tuple[int, ...]], tuple[int, int]] = {}
        self.calls = 0

    def use(self, scope: str, tokens: list[int], *, insert: bool) -> None:
        """Reads or puts a sequence; of beginnings used at the same time the longest go first."""
        self.calls += 1
        for end in range(1, min(len(tokens), self.capacity) + 1):
            key = (scope, tuple(tokens[:end]))
            if not insert and key not in self.used:
                break
            self.used[key] = (self.calls, -end)
        while len(self.used) > self.capacity:
            del self.used[min(self.used, key=lambda one: self.used[one])]


def test_it_forgets_what_a_table_of_last_uses_would_forget() -> None:
    """Whatever was read, put and cut before, as many tokens of each sequence are known."""
    rng = random.Random(3)
    tree, book = PrefixTree(40), Forgetful(40)
    for _ in range(600):
        scope = rng.choice("ab")
        tokens = [rng.randrange(3) for _ in range(3)] + [rng.randrange(10**6) for _ in range(5)]
        known = [list(one) for owner, one in book.used if owner == scope]
        # A run counts as used as a whole, so nothing is read that ends inside one.
        whole = [one for one in known if not any(one == more[:-1] for more in known)]
        if whole and rng.random() < 0.5:
            tokens = rng.choice(whole)
            tree.match(scope, tokens)
            book.use(scope, tokens, insert=False)
        else:
            tree.insert(scope, tokens)
            book.use(scope, tokens, insert=True)
        tree.check_integrity()
        for one in known:
            expected = sum((scope, tuple(one[: n + 1])) in book.used for n in range(len(one)))
            assert tree.length(scope, one) == expected


def lines_run(call: Any) -> int:
    """Counts the lines of Python that a call runs."""
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before, collects = sys.gettrace(), gc.isenabled()
    gc.disable()  # Hypothesis listens to the collector: its lines would count too.
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()
    return count


def test_an_insert_into_a_full_cache_costs_the_same_however_much_is_held() -> None:
    """Nobody who asks for a length waits for a look at all that is held."""
    steps = []
    for num_sequences in (20, 2000):
        tree = PrefixTree(4 * num_sequences)
        for number in range(num_sequences):
            tree.insert("s", [number, 1, 2, 3])
        steps.append(lines_run(lambda tree=tree: tree.insert("s", [-1, 1, 2, 3])))
        assert tree.length("s", [0, 1, 2, 3]) == 0
    assert steps[0] == steps[1]
