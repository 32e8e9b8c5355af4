"""The accept walk: follow the target's own tokens down the drafted tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Outcome of one walk.

    Attributes:
        accepted_nodes: Node indices from depth 1 down, root (0) excluded; may be empty.
        bonus: The target's token after the last accepted node.
    """

    accepted_nodes: tuple[int, ...]
    bonus: int


def accept(
    tokens: Sequence[int], parent_indices: Sequence[int], node_tokens: Sequence[int]
) -> Acceptance:
    """Walks from the root while the target's token is among the node's children.

    EAGLE's rule with deterministic proposals (EAGLE-2 §4, q = 1) and shared Gumbel noise: exact
    for greedy and for sampling, because `node_tokens` never depends on the tree.

    Args:
        tokens: Drafted tokens, node 1 first, length n.
        parent_indices: Parent of each drafted node, 0 = root, each < the node's own index.
        node_tokens: The target's token at root and every node, length n + 1.
    Returns:
        The accepted path and the bonus token.
    """
    accepted: list[int] = []
    current = 0
    for node, (token, parent) in enumerate(zip(tokens, parent_indices, strict=True), start=1):
        # Parents come first, so one pass in node order is the walk; siblings are distinct.
        if parent == current and token == node_tokens[current]:
            accepted.append(node)
            current = node
    return Acceptance(tuple(accepted), node_tokens[current])
