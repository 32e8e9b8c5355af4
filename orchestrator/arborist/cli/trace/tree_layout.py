"""Where the nodes of a tree stand in a drawing."""

from __future__ import annotations

from collections.abc import Sequence


def node_rows(parents: Sequence[int]) -> list[float]:
    """Places nodes so that leaves have a row each and every parent stands in the middle.

    Args:
        parents: Parent of every node, −1 for the root, each < the node's own index.
    Returns:
        Row of every node, from 0; no edges cross when the column is the node's depth.
    """
    children: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(node)
    rows = [0.0] * len(parents)
    next_row = 0
    stack = [0]
    while stack:
        node = stack.pop()
        if not children[node]:
            rows[node] = float(next_row)
            next_row += 1
        stack.extend(reversed(children[node]))
    for node in reversed(range(len(parents))):  # Children before their parent.
        if children[node]:
            rows[node] = (rows[children[node][0]] + rows[children[node][-1]]) / 2
    return rows
