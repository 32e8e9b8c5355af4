"""N-gram lookup: drafts what followed the last tokens when they stood in the text before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from arborist.core.shape import TreeShape
from arborist.core.tree import IntArray, VerifyTree

MIN_MATCH_TOKENS = 2
"""Shortest match: one token alone says too little to pay for verifying what followed it."""
MAX_MATCH_TOKENS = 4
"""Matches longer than this count alike; the most recent one is then the best."""
MAX_MATCHES = 64
"""Best matches looked at: in a text that repeats itself all of them say the same."""
LOOKUP_WINDOW_TOKENS = 16_384
"""How far back a lookup goes, so that its time is bounded."""


class NgramPolicy:
    """Drafts from the session's own prompt and output; needs no draft worker.

    The last tokens are looked for in the text, longest match first, then the most recent. What
    followed each match is a path of the tree; paths with a common beginning share its nodes. Pays
    where the output repeats the prompt or itself: code, summaries, answers with quotes.
    """

    def __init__(self, shape: TreeShape) -> None:
        """Prepares the policy.

        Args:
            shape: Most levels, most paths (`top_k`), most nodes.
        """
        self._shape = shape

    @property
    def shape(self) -> TreeShape:
        """Returns the bounds of the tree."""
        return self._shape

    def propose(self, committed: Sequence[int]) -> VerifyTree:
        """Returns the tree to verify; empty when the last tokens are new.

        Args:
            committed: The text so far, root last.
        Returns:
            Parents first; scores are 0, because a lookup has no probabilities.
        """
        tokens: list[int] = []
        parents: list[int] = []
        node_of: dict[tuple[int, int], int] = {}  # (parent, token) → node, 0 = root.
        num_paths = 0
        for path in self._continuations(np.asarray(committed[-LOOKUP_WINDOW_TOKENS:])):
            size, node = len(tokens), 0
            for token in path:
                child = node_of.get((node, token))
                if child is None:
                    if len(tokens) == self._shape.num_draft_tokens:
                        break
                    tokens.append(token)
                    parents.append(node)
                    child = node_of[node, token] = len(tokens)
                node = child
            num_paths += len(tokens) > size
            if num_paths == self._shape.top_k or len(tokens) == self._shape.num_draft_tokens:
                break
        return VerifyTree(tokens, parents, [0.0] * len(tokens), list(range(len(tokens))))

    def _continuations(self, text: IntArray) -> Iterator[list[int]]:
        """Yields what followed the matches, best match first."""
        length = len(text)
        ends = np.flatnonzero(text[:-1] == text[-1]) if length else np.empty(0, dtype=np.int64)
        lengths = np.ones(len(ends), dtype=np.int64)  # Tokens that match, the last included.
        for back in range(1, MAX_MATCH_TOKENS):
            if back >= length:
                break
            agrees = (ends >= back) & (text[ends - back] == text[-1 - back])
            lengths += agrees & (lengths == back)
        for match in np.lexsort((-ends, -lengths))[:MAX_MATCHES]:
            if lengths[match] < MIN_MATCH_TOKENS:
                return
            begin = int(ends[match]) + 1
            # Where the text ends the continuation goes on with itself, as a repetition would.
            steps = begin + np.arange(self._shape.depth) % (length - begin)
            yield text[steps].tolist()
