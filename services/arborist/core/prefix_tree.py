"""Which token sequences a cache holds, and in which of its slots: a radix tree with few slots."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from arborist.core.tree import IntArray


@dataclass(eq=False, slots=True)
class _Node:
    """A run of tokens behind its parent's.

    Attributes:
        tokens: int64, shape (n,); n = 0 for the root of a scope.
        slots: int64, shape (n,); where each token's data lies.
        scope: Whose it is.
        parent: None for the root of a scope.
        used: When the run was last read or written, in calls.
        children: By their first token.
    """

    tokens: IntArray
    slots: IntArray
    scope: Hashable
    parent: _Node | None
    used: int
    children: dict[int, _Node] = field(default_factory=dict)


class PrefixTree:
    """Finds the longest known beginning of a sequence, token by token, and gives out slots.

    Sequences that begin alike share the slots of what they share. Tokens themselves are compared,
    no hash of them. What was not used for longest makes room, ends of sequences first, so that
    everything before a held token is held too. One thread changes it, any may ask for a `length`,
    and waits for no more than the steps of one sequence: no call looks at all that is held.
    """

    def __init__(self, capacity: int) -> None:
        """Makes an empty tree.

        Args:
            capacity: Slots, one per token, at least 1.
        """
        self.capacity = capacity
        self._roots: dict[Hashable, _Node] = {}
        # Runs by their last use, oldest first, each behind all that hangs below it: so the first
        # one is an end that was not used for longest.
        self._order: OrderedDict[_Node, None] = OrderedDict()
        self._free = np.arange(capacity)[::-1].copy()  # A stack; the lowest slots leave first.
        self._num_free = capacity
        self._calls = 0
        self._lock = threading.Lock()

    @property
    def num_tokens(self) -> int:
        """Returns the tokens held."""
        return self.capacity - self._num_free

    def match(self, scope: Hashable, tokens: Sequence[int]) -> IntArray:
        """Returns the slots of the longest known beginning of a sequence, shape (n,), int64."""
        wanted = np.asarray(tokens, dtype=np.int64)
        with self._lock:
            self._calls += 1
            path = self._walk(scope, wanted)
            self._mark(path[-1][0] if path else None)
        return np.concatenate([np.empty(0, np.int64), *(slots for _, slots in path)])

    def length(self, scope: Hashable, tokens: Sequence[int]) -> int:
        """Returns how many leading tokens are known, without using them; from any thread."""
        wanted = np.asarray(tokens, dtype=np.int64)
        with self._lock:
            return sum(len(slots) for _, slots in self._walk(scope, wanted))

    def insert(self, scope: Hashable, tokens: Sequence[int]) -> tuple[int, IntArray]:
        """Makes a sequence known, as far as it fits.

        Args:
            scope: Whose it is.
            tokens: The sequence.
        Returns:
            (begin, slots): the caller must put the data of tokens begin, begin + 1, ... into
            these slots, int64; what is before `begin` was there already.
        """
        wanted = np.asarray(tokens, dtype=np.int64)[: self.capacity]
        with self._lock:
            return self._insert(scope, wanted)

    def take_back(self, scope: Hashable, tokens: Sequence[int], begin: int) -> None:
        """Undoes the last `insert`, which gave slots that were then not written.

        Args:
            scope: Whose it is.
            tokens: The sequence.
            begin: As `insert` returned it.
        """
        wanted = np.asarray(tokens, dtype=np.int64)
        with self._lock:
            path = self._walk(scope, wanted)
            if not path or sum(len(slots) for _, slots in path[:-1]) != begin:
                return  # Nothing was inserted there.
            node = path[-1][0]
            if node.parent is None or node.children:
                return
            self._give_back(node.slots)
            self._drop(node)

    def _insert(self, scope: Hashable, wanted: IntArray) -> tuple[int, IntArray]:
        self._calls += 1
        path = self._walk(scope, wanted)
        begin = sum(len(slots) for _, slots in path)
        if path and begin < len(wanted):
            # Cut first: what comes behind the common part was not used and may make room.
            path[-1] = self._cut(*path[-1])
        last = path[-1][0] if path else None
        self._mark(last)
        new = self._take(len(wanted) - begin)
        if not len(new):
            return begin, new
        parent = last or self._root(scope)
        run = wanted[begin : begin + len(new)].copy()
        node = _Node(run, new, scope, parent, self._calls)
        parent.children[int(run[0])] = node
        self._order[node] = None
        self._mark(node)
        return begin, new

    def check_integrity(self) -> None:
        """Checks that every slot is free or held by one token, and that runs hang together.

        Raises:
            RuntimeError: They do not.
        """
        held, num_runs = [self._free[: self._num_free]], 0
        for scope in self._roots:
            for node in self._nodes(scope):
                held.append(node.slots)
                num_runs += node.parent is not None
                if len(node.slots) != len(node.tokens):
                    raise RuntimeError(f"{len(node.tokens)} tokens lie in {len(node.slots)} slots")
                for first, child in node.children.items():
                    if child.parent is not node or first != child.tokens[0]:
                        raise RuntimeError("a run of the prefix cache hangs in the wrong place")
        places = {node: place for place, node in enumerate(self._order)}
        for node, place in places.items():
            above = node.parent
            if above is None or place > places.get(above, len(places)):
                raise RuntimeError("a run of the prefix cache would make room after all before it")
            if above.children.get(int(node.tokens[0])) is not node:
                raise RuntimeError("a run of the prefix cache would make room after it was dropped")
        if len(places) != num_runs:
            raise RuntimeError("a run of the prefix cache would never make room")
        if not np.array_equal(np.sort(np.concatenate(held)), np.arange(self.capacity)):
            raise RuntimeError("slots of the prefix cache are lost or held twice")

    def _walk(self, scope: Hashable, tokens: IntArray) -> list[tuple[_Node, IntArray]]:
        """Returns each run along a sequence with the slots of what fits; the last may be cut."""
        path: list[tuple[_Node, IntArray]] = []
        node, at = self._roots.get(scope), 0
        while node is not None and at < len(tokens):
            node = node.children.get(int(tokens[at]))
            if node is None:
                break
            known = node.tokens[: len(tokens) - at]
            differs = np.flatnonzero(known != tokens[at : at + len(known)])
            fits = int(differs[0]) if len(differs) else len(known)
            path.append((node, node.slots[:fits]))
            at += fits
            if fits < len(node.tokens):
                break
        return path

    def _mark(self, node: _Node | None) -> None:
        """Notes that a run and all before it are used now; what hangs below comes first."""
        while node is not None and node.parent is not None:
            node.used = self._calls
            self._order.move_to_end(node)
            node = node.parent

    def _root(self, scope: Hashable) -> _Node:
        if scope not in self._roots:
            empty = np.empty(0, np.int64)
            self._roots[scope] = _Node(empty, empty, scope, None, self._calls)
        return self._roots[scope]

    def _cut(self, node: _Node, slots: IntArray) -> tuple[_Node, IntArray]:
        """Cuts a run behind some of its slots; returns the first part, now a run of its own.

        The first part must be marked next: it stands in no order yet.
        """
        parent, at = node.parent, len(slots)
        if parent is None or at == len(node.tokens):
            return node, slots
        head = _Node(node.tokens[:at].copy(), slots.copy(), node.scope, parent, node.used)
        self._order[head] = None
        parent.children[int(head.tokens[0])] = head
        node.tokens, node.slots = node.tokens[at:].copy(), node.slots[at:].copy()
        node.parent = head
        head.children[int(node.tokens[0])] = node
        return head, head.slots

    def _take(self, count: int) -> IntArray:
        """Returns up to `count` slots; what this call has used makes no room."""
        if count > self._num_free:
            self._evict(count - self._num_free)
        count = min(count, self._num_free)
        self._num_free -= count
        taken = self._free[self._num_free : self._num_free + count]
        return taken[::-1].copy()

    def _evict(self, count: int) -> None:
        while count > 0 and self._order:
            node = next(iter(self._order))
            if node.used == self._calls:
                return
            dropped = min(count, len(node.slots))
            self._give_back(node.slots[len(node.slots) - dropped :])
            count -= dropped
            kept = len(node.slots) - dropped
            if kept:
                node.tokens, node.slots = node.tokens[:kept].copy(), node.slots[:kept].copy()
                return
            self._drop(node)

    def _drop(self, node: _Node) -> None:
        """Forgets an end, and its scope with the last of it."""
        del self._order[node]
        parent = node.parent
        if parent is None:
            return
        del parent.children[int(node.tokens[0])]
        if parent.parent is None and not parent.children:
            del self._roots[node.scope]

    def _give_back(self, slots: IntArray) -> None:
        self._free[self._num_free : self._num_free + len(slots)] = slots[::-1]
        self._num_free += len(slots)

    def _nodes(self, scope: Hashable) -> Iterator[_Node]:
        stack = [self._roots[scope]]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())
