"""Rounds as SVG: the tree from left to right, the accepted path marked."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

from arborist.cli.trace.traced_round import TracedRound
from arborist.cli.trace.tree_layout import node_rows

_COLUMN, _ROW = 176, 26
_BOX_WIDTH, _BOX_HEIGHT = 132, 20
_MARGIN, _TITLE = 16, 34
_STYLE = (
    "text{font:12px ui-monospace,Menlo,Consolas,DejaVu Sans Mono,monospace;fill:#1f2328}"
    ".title{font-weight:bold}"
    ".node rect{fill:#f6f8fa;stroke:#afb8c1}"
    ".accepted rect{fill:#c8f0d0;stroke:#1a7f37;stroke-width:2}"
    ".bonus rect{fill:#fff3d0;stroke:#9a6700;stroke-width:2;stroke-dasharray:4 3}"
    ".edge{fill:none;stroke:#afb8c1}"
    ".edge.accepted{stroke:#1a7f37;stroke-width:2.5}"
    ".edge.bonus{stroke:#9a6700;stroke-width:2;stroke-dasharray:4 3}"
    ".p{fill:#57606a;text-anchor:end}"
)


def draw_rounds(rounds: Sequence[TracedRound], label: Callable[[int], str]) -> str:
    """Draws rounds below one another.

    Args:
        rounds: From the top.
        label: Names a token.
    Returns:
        An SVG document: each box is a node with its token and its probability given the root
        (e to the score); accepted nodes are green, the bonus token is dashed.
    """
    parts: list[str] = []
    top, width = _MARGIN, 0
    for one in rounds:
        drawing = _RoundDrawing(one, label)
        parts.append(f'<g class="round" transform="translate({_MARGIN} {top})">')
        parts.extend(drawing.elements())
        parts.append("</g>")
        top += drawing.height + _MARGIN
        width = max(width, drawing.width)
    width += 2 * _MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" '
            f'viewBox="0 0 {width} {top}">',
            f"<style>{_STYLE}</style>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


class _RoundDrawing:
    """One round: the verified tree, and the bonus token as a child of the last accepted node."""

    def __init__(self, traced: TracedRound, label: Callable[[int], str]) -> None:
        self._round = traced
        self._label = label
        last = traced.accepted_nodes[-1]
        self._tokens = [*traced.tokens, traced.bonus_token]
        self._parents = [*traced.parents, last]
        self._columns = [*traced.depths, traced.depths[last] + 1]
        self._rows = node_rows(self._parents)
        self._accepted = frozenset(traced.accepted_nodes)
        title_width = 8 * len(self._title())
        self.width = max(max(self._columns) * _COLUMN + _BOX_WIDTH, title_width)
        self.height = int(_TITLE + (max(self._rows) + 1) * _ROW)

    def elements(self) -> list[str]:
        """Returns the title, the edges, and the boxes over them."""
        title = html.escape(self._title())
        nodes = range(len(self._tokens))
        return [
            f'<text class="title" y="14">{title}</text>',
            *(self._edge(node) for node in nodes[1:]),
            *(self._box(node) for node in nodes),
        ]

    def _title(self) -> str:
        one = self._round
        return (
            f"prompt {one.id}, round {one.round_index}: {len(one.accepted_nodes) - 1} of "
            f"{len(one.tokens) - 1} accepted, root at position {one.prefix_len}"
        )

    def _kind(self, node: int) -> str:
        if node == len(self._round.tokens):
            return "bonus"
        return "accepted" if node in self._accepted else "drafted"

    def _place(self, node: int) -> tuple[int, float]:
        return self._columns[node] * _COLUMN, _TITLE + self._rows[node] * _ROW

    def _edge(self, node: int) -> str:
        (left, above), (right, below) = self._place(self._parents[node]), self._place(node)
        left += _BOX_WIDTH
        begin, end = above + _BOX_HEIGHT / 2, below + _BOX_HEIGHT / 2
        middle = (left + right) / 2
        return (
            f'<path class="edge {self._kind(node)}" '
            f'd="M{left} {begin:g}C{middle:g} {begin:g} {middle:g} {end:g} {right} {end:g}"/>'
        )

    def _box(self, node: int) -> str:
        x, y = self._place(node)
        kind = self._kind(node)
        text = html.escape(self._label(self._tokens[node]))
        share = ""
        if 0 < node < len(self._round.tokens):
            probability = math.exp(self._round.scores[node])
            share = f'<text class="p" x="{_BOX_WIDTH - 6}" y="14">{probability:.3f}</text>'
        return (
            f'<g class="node {kind}" transform="translate({x} {y:g})">'
            f"<title>{html.escape(self._tooltip(node))}</title>"
            f'<rect width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="4"/>'
            f'<text x="6" y="14">{text}</text>{share}</g>'
        )

    def _tooltip(self, node: int) -> str:
        token = self._tokens[node]
        if node == len(self._round.tokens):
            return f"bonus token {token}, supplied by the target"
        wanted = self._round.target_argmax[node]
        return (
            f"node {node}, token {token}, depth {self._columns[node]}, "
            f"score {self._round.scores[node]:.3f}; the target continues with {wanted} "
            f"{self._label(wanted)}"
        )
