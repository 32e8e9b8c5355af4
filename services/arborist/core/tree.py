"""The draft tree of one round: a pool of scored candidates and the tree reranked from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arborist.core.errors import InvalidArgumentError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Level:
    """Children of one draft forward.

    Attributes:
        tokens: int64, shape (rows, top_k); row i are the children of the i-th expanded node,
            best first, distinct inside a row.
        logprobs: float32, shape (rows, top_k); log-probs of the draft softmax, raw or aimed at
            the target's noise (core.noise_aim), <= 0.
    """

    tokens: IntArray
    logprobs: FloatArray

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.tokens.shape != self.logprobs.shape:
            raise ValueError("a level needs tokens and logprobs of one shape (rows, top_k)")
        if not bool(np.isfinite(self.logprobs).all()):
            raise ValueError("a level's logprobs must be finite")


@dataclass(frozen=True, slots=True)
class VerifyTree:
    """The tree sent to the target; the root is implicit.

    Attributes:
        tokens: Drafted tokens, node 1 first.
        parent_indices: Parent of each drafted node: 0 = root, always < the node's own index.
        scores: Cumulative draft log-probs of the drafted nodes, fp32.
        pool_indices: Index of each drafted node in the pool.
    """

    tokens: list[int]
    parent_indices: list[int]
    scores: list[float]
    pool_indices: list[int]

    @property
    def depths(self) -> list[int]:
        """Returns the depth of root and every drafted node, root first."""
        return node_depths(self.parent_indices)


ROOT_ONLY = VerifyTree([], [], [], [])


class DraftTree:
    """Every candidate scored in one round, in pool order (EAGLE-2 §3.2).

    Pool order: level 1, then one block per expansion, row = expanded node, column = rank. A
    parent's index is therefore smaller than its children's, and since log-probs are <= 0 a
    parent's score is never below its children's.
    """

    def __init__(self, level: Level) -> None:
        """Starts the tree with level 1.

        Args:
            level: One row: the children of the root.
        """
        if level.tokens.shape[0] != 1:
            raise ValueError("level 1 has one row, the root's children")
        self._tokens: list[IntArray] = [level.tokens[0]]
        self._scores: list[FloatArray] = [np.minimum(level.logprobs[0], np.float32(0))]
        self._parents: list[IntArray] = [np.full(level.tokens.shape[1], -1, dtype=np.int64)]
        self._expanded: list[IntArray] = []
        self._newest_logprobs = self._scores[0]
        self._newest_offset = 0
        self.num_levels = 1

    def __len__(self) -> int:
        """Returns the number of candidates."""
        return self._newest_offset + len(self._scores[-1])

    @property
    def newest_scores(self) -> FloatArray:
        """Returns cumulative log-probs of the newest level, shape (candidates,)."""
        return self._scores[-1]

    @property
    def newest_logprobs(self) -> FloatArray:
        """Returns each newest node's own log-prob given its parent, shape (candidates,)."""
        return self._newest_logprobs

    @property
    def newest_offset(self) -> int:
        """Returns the pool index of the newest level's first candidate."""
        return self._newest_offset

    @property
    def expanded(self) -> IntArray:
        """Returns pool indices of the expanded nodes, in order of expansion; int64."""
        if not self._expanded:
            return np.empty(0, dtype=np.int64)
        return np.concatenate(self._expanded)

    def frontier(self, width: int) -> IntArray:
        """Returns the newest level's best nodes, the only ones expanded (EAGLE-2 §4.1).

        Args:
            width: Most nodes to return.
        Returns:
            int64, indices inside the newest level, best first; ties go to the smaller index.
        """
        return best_first(self._scores[-1])[:width]

    def grow(self, frontier: IntArray, level: Level) -> None:
        """Adds the children of the frontier: cumulative score = parent's + child's, in fp32.

        Args:
            frontier: Indices inside the newest level, as expanded.
            level: One row per expanded node, in the same order.
        """
        if level.tokens.shape[0] != len(frontier):
            raise ValueError("an expansion has one row per frontier node")
        children = np.minimum(level.logprobs, np.float32(0))  # [F, k]
        scores = self._scores[-1][frontier, None] + children  # [F, k] fp32
        self._expanded.append(frontier + self._newest_offset)  # [F]
        parents = np.repeat(self._expanded[-1], level.tokens.shape[1])  # [F·k]
        self._newest_offset = len(self)
        self._tokens.append(level.tokens.reshape(-1))
        self._scores.append(scores.reshape(-1).astype(np.float32, copy=False))
        self._newest_logprobs = children.reshape(-1)
        self._parents.append(parents)
        self.num_levels += 1

    def rerank(self, num_draft_tokens: int) -> VerifyTree:
        """Keeps the best candidates of the whole pool as one connected tree (EAGLE-2 §4.2).

        Order is (score descending, pool index ascending), so on ties the shallower node wins and
        a child is never kept without its parent.

        Args:
            num_draft_tokens: Most nodes to keep, root excluded.
        Returns:
            The tree, nodes in pool order.
        """
        scores = np.concatenate(self._scores)  # [P]
        return self.select(np.sort(best_first(scores)[:num_draft_tokens]))

    def select(self, pool_indices: IntArray) -> VerifyTree:
        """Builds the tree of the named candidates.

        Args:
            pool_indices: int64, ascending, closed under parents.
        Returns:
            The tree, nodes in pool order.
        Raises:
            ValueError: A candidate's parent is not among them.
        """
        tokens = np.concatenate(self._tokens)[pool_indices].tolist()
        scores = np.concatenate(self._scores)[pool_indices].tolist()
        parents = np.concatenate(self._parents)[pool_indices].tolist()
        indices = pool_indices.tolist()
        node_of = {-1: 0}
        parent_indices: list[int] = []
        for node, (index, parent) in enumerate(zip(indices, parents, strict=True), start=1):
            if parent not in node_of:
                raise ValueError(f"candidate {index} is kept without its parent {parent}")
            parent_indices.append(node_of[parent])
            node_of[index] = node
        return VerifyTree(tokens, parent_indices, scores, indices)


def best_first(scores: FloatArray) -> IntArray:
    """Returns indices by (score descending, index ascending)."""
    return np.argsort(-scores, kind="stable")


def node_depths(parent_indices: Sequence[int]) -> list[int]:
    """Returns the depth of root and every drafted node.

    Args:
        parent_indices: Parent of each drafted node, 0 = root.
    Returns:
        Depths, root (0) first, length len(parent_indices) + 1.
    """
    depths = [0]
    for parent in parent_indices:
        depths.append(depths[parent] + 1)
    return depths


def node_paths(
    root: int, tokens: Sequence[int], parent_indices: Sequence[int]
) -> list[tuple[int, ...]]:
    """Returns the tokens from the root down to every node, both included.

    Args:
        root: The root's token.
        tokens: Drafted tokens, node 1 first.
        parent_indices: Parent of each drafted node, 0 = root, each < the node's own index.
    Returns:
        One path per node, the root's first.
    """
    paths: list[tuple[int, ...]] = [(root,)]
    for token, parent in zip(tokens, parent_indices, strict=True):
        paths.append((*paths[parent], token))
    return paths


def ancestor_mask(parent_indices: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Returns which nodes each node may attend to: itself and its ancestors.

    Args:
        parent_indices: Parent of each drafted node, 0 = root, each < the node's own index.
    Returns:
        bool, shape (n + 1, n + 1), root first; row i has depth(i) + 1 ones.
    """
    mask = np.eye(len(parent_indices) + 1, dtype=np.bool_)
    for node, parent in enumerate(parent_indices, start=1):
        mask[node] |= mask[parent]  # The parent's row is complete: parents come first.
    return mask


def check_tree(
    tokens: Sequence[int], parent_indices: Sequence[int], max_nodes: int, vocab_size: int
) -> None:
    """Refuses anything that is not a bounded tree with parents first.

    Raises:
        InvalidArgumentError: Naming the field and its limit.
    """
    if len(tokens) != len(parent_indices):
        raise InvalidArgumentError(
            "parent_indices", len(parent_indices), f"as many as tokens ({len(tokens)})"
        )
    if len(tokens) > max_nodes:
        raise InvalidArgumentError("tokens", len(tokens), f"at most {max_nodes} drafted nodes")
    siblings: set[tuple[int, int]] = set()
    for node, (token, parent) in enumerate(zip(tokens, parent_indices, strict=True), start=1):
        if not 0 <= token < vocab_size:
            raise InvalidArgumentError(f"tokens[{node}]", token, f"in [0, {vocab_size})")
        if not 0 <= parent < node:
            raise InvalidArgumentError(f"parent_indices[{node}]", parent, f"in [0, {node})")
        if (parent, token) in siblings:
            raise InvalidArgumentError(f"tokens[{node}]", token, "distinct among siblings")
        siblings.add((parent, token))
