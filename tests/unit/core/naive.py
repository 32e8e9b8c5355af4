"""Deliberately slow references for the core: plain objects, plain sorting, plain enumeration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from arborist.core.tree import Level


@dataclass(frozen=True)
class Candidate:
    """A scored candidate: path of tokens from the root, its log-prob, the last token's own."""

    path: tuple[int, ...]
    parent: int
    score: np.float32
    own: np.float32

    @property
    def depth(self) -> int:
        """Distance from the root."""
        return len(self.path)


class NaivePool:
    """Every candidate of a round in one list."""

    def __init__(self) -> None:
        self.candidates: list[Candidate] = []
        self.newest: list[int] = []

    def add(self, parents: list[int], level: Level) -> None:
        """Adds the children of the named candidates; -1 = the root."""
        begin = len(self.candidates)
        for row, parent in enumerate(parents):
            path, score = (
                ((), np.float32(0))
                if parent < 0
                else (self.candidates[parent].path, self.candidates[parent].score)
            )
            for token, logprob in zip(level.tokens[row], level.logprobs[row], strict=True):
                total, own = np.float32(score + logprob), np.float32(logprob)
                child = Candidate((*path, int(token)), parent, total, own)
                self.candidates.append(child)
        self.newest = list(range(begin, len(self.candidates)))

    def frontier(self, width: int) -> list[int]:
        """Pool indices of the newest level's best; the smaller index first on ties."""
        return sorted(self.newest, key=lambda i: (-self.candidates[i].score, i))[:width]

    def frontier_by_own(self, width: int) -> list[int]:
        """The same by the log-prob of the node alone, whatever its parent's."""
        return sorted(self.newest, key=lambda i: (-self.candidates[i].own, i))[:width]

    def rerank(self, count: int) -> list[int]:
        """Takes the best remaining candidate `count` times; the shallower first on ties."""
        left = list(range(len(self.candidates)))
        chosen: list[int] = []
        while left and len(chosen) < count:
            best = left[0]
            for index in left[1:]:
                one, other = self.candidates[index], self.candidates[best]
                if one.score > other.score or (
                    one.score == other.score and one.depth < other.depth
                ):
                    best = index
            left.remove(best)
            chosen.append(best)
        return sorted(chosen)


def naive_accept(
    tokens: list[int], parents: list[int], node_tokens: list[int]
) -> tuple[tuple[int, ...], int]:
    """Enumerates every path from the root and keeps the longest the target agrees with."""
    paths: list[tuple[int, ...]] = [()]
    for node, parent in enumerate(parents, start=1):
        above = next(path for path in paths if (path[-1] if path else 0) == parent)
        paths.append((*above, node))
    agreed = [
        path
        for path in paths
        if all(
            tokens[node - 1] == node_tokens[parent]
            for parent, node in zip((0, *path), path, strict=False)
        )
    ]
    longest = max(agreed, key=len)
    return longest, node_tokens[longest[-1] if longest else 0]


@st.composite
def levels(draw: st.DrawFn, rows: int, top_k: int) -> Level:
    """A level with coarse log-probs, so that ties are the rule; best first, tokens distinct."""
    steps = st.integers(0, 6) if draw(st.booleans()) else st.integers(0, 2000)
    logprobs = [sorted((-draw(steps) / 4 for _ in range(top_k)), reverse=True) for _ in range(rows)]
    tokens = [
        draw(st.lists(st.integers(0, 40), min_size=top_k, max_size=top_k, unique=True))
        for _ in range(rows)
    ]
    return Level(np.array(tokens, dtype=np.int64), np.array(logprobs, dtype=np.float32))


@st.composite
def trees(draw: st.DrawFn, max_nodes: int = 14) -> tuple[list[int], list[int]]:
    """Tokens and parents of a tree with parents first and distinct siblings."""
    tokens: list[int] = []
    parents: list[int] = []
    for _ in range(draw(st.integers(0, max_nodes))):
        parent, token = draw(st.integers(0, len(tokens))), draw(st.integers(0, 3))
        if (parent, token) not in zip(parents, tokens, strict=True):
            parents.append(parent)
            tokens.append(token)
    return tokens, parents
