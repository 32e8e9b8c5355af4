"""Which token sequences a cache holds, and in which of its slots: a radix tree with few slots."""

from __future__ import annotations

import heapq
import threading
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
        parent: None for the root of a scope.
        children: By their first token.
        used: When the run was last read or written, in calls.
    """

    tokens: IntArray
    slots: IntArray
    parent: _Node | None
    used: int
    children: dict[int, _Node] = field(default_factory=dict)


class PrefixTree:
    """Finds the longest known beginning of a sequence, token by token, and gives out slots.

    Sequences that begin alike share the slots of what they share. Tokens themselves are compared,
    no hash of them. What was not used for longest makes room, ends of sequences first, so that
    everything before a held token is held too. One thread changes it, any may ask for a `length`.
    """

    def __init__(self, capacity: int) -> None:
        """Makes an empty tree.

        Args:
            capacity: Slots, one per token, at least 1.
        """
        self.capacity = capacity
        self._roots: dict[Hashable, _Node] = {}
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
            self._mark(scope, path)
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
            del node.parent.children[int(node.tokens[0])]
            if node.parent.parent is None and not node.parent.children:
                del self._roots[scope]

    def _insert(self, scope: Hashable, wanted: IntArray) -> tuple[int, IntArray]:
        self._calls += 1
        path = self._walk(scope, wanted)
        begin = sum(len(slots) for _, slots in path)
        if path and begin < len(wanted):
            # Cut first: what comes behind the common part was not used and may make room.
            path[-1] = self._cut(*path[-1])
        self._mark(scope, path)
        new = self._take(len(wanted) - begin)
        if not len(new):
            return begin, new
        node = path[-1][0] if path else self._root(scope)
        run = wanted[begin : begin + len(new)].copy()
        node.children[int(run[0])] = _Node(run, new, node, self._calls)
        return begin, new

    def check_integrity(self) -> None:
        """Checks that every slot is free or held by one token, and that runs hang together.

        Raises:
            RuntimeError: They do not.
        """
        held = [self._free[: self._num_free]]
        for scope in self._roots:
            for node in self._nodes(scope):
                held.append(node.slots)
                if len(node.slots) != len(node.tokens):
                    raise RuntimeError(f"{len(node.tokens)} tokens lie in {len(node.slots)} slots")
                for first, child in node.children.items():
                    if child.parent is not node or first != child.tokens[0]:
                        raise RuntimeError("a run of the prefix cache hangs in the wrong place")
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

    def _mark(self, scope: Hashable, path: list[tuple[_Node, IntArray]]) -> None:
        """Notes that a path is used now."""
        root = self._roots.get(scope)
        if root is not None:
            root.used = self._calls
        for node, _ in path:
            node.used = self._calls

    def _root(self, scope: Hashable) -> _Node:
        if scope not in self._roots:
            empty = np.empty(0, np.int64)
            self._roots[scope] = _Node(empty, empty, None, self._calls)
        return self._roots[scope]

    def _cut(self, node: _Node, slots: IntArray) -> tuple[_Node, IntArray]:
        """Cuts a run behind some of its slots; returns the first part, now a run of its own."""
        parent, at = node.parent, len(slots)
        if parent is None or at == len(node.tokens):
            return node, slots
        head = _Node(node.tokens[:at].copy(), slots.copy(), parent, node.used)
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
        leaves = [
            (node.used, order, scope, node)
            for order, (scope, node) in enumerate(
                (scope, node) for scope in self._roots for node in self._nodes(scope)
            )
            if not node.children
        ]
        heapq.heapify(leaves)
        while count > 0 and leaves:
            used, order, scope, node = heapq.heappop(leaves)
            if used == self._calls:
                return
            dropped = min(count, len(node.slots))
            self._give_back(node.slots[len(node.slots) - dropped :])
            count -= dropped
            kept = len(node.slots) - dropped
            if kept:
                node.tokens, node.slots = node.tokens[:kept].copy(), node.slots[:kept].copy()
                return
            parent = node.parent
            if parent is None:
                del self._roots[scope]
                continue
            del parent.children[int(node.tokens[0])]
            if not parent.children:
                heapq.heappush(leaves, (parent.used, order, scope, parent))

    def _give_back(self, slots: IntArray) -> None:
        self._free[self._num_free : self._num_free + len(slots)] = slots[::-1]
        self._num_free += len(slots)

    def _nodes(self, scope: Hashable) -> Iterator[_Node]:
        stack = [self._roots[scope]]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())
