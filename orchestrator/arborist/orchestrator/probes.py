"""Larger trees than the present one, tried by single sessions: they tell what is accepted."""

from __future__ import annotations

from arborist.core.acceptance import AcceptanceGrid
from arborist.core.shape import TreeShape
from arborist.core.tree_sizing import Load, TreeSize, drafted_ms
from arborist.orchestrator.savings import Savings

# Fewest rounds told of between two; every so many are of the whole tree.
_ROUNDS_BETWEEN = 8
_WHOLE_TREE_EVERY = 4
# Rows that a draft lacks when a single session tries a tree while others rest, at first; what
# tries really took, over what they were expected to take, is learned up to a factor.
_ROWS_BEHIND = 128
_LEAST_LOSS_MS = 1.0
_DEAREST = 16.0
_WEIGHT = 0.2


class Probes:
    """Says when a session is to try a larger tree, once the time it may cost is saved up."""

    def __init__(self) -> None:
        """Starts without savings."""
        self._rounds_since = 0
        self._count = 0
        self._savings = Savings()
        self._factors: dict[int, float] = {}  # By level of load.
        self._expected_loss_ms = _LEAST_LOSS_MS  # Of the last one.

    def add(self, passed_ms: float) -> None:
        """Saves a share of time that passed."""
        self._savings.add(passed_ms)

    def next_shape(
        self, limit: TreeShape, present: TreeSize, grid: AcceptanceGrid, load: Load, level: int
    ) -> TreeShape | None:
        """Returns a larger tree for this session and round; None = not now.

        Args:
            limit: The session's largest tree.
            present: The size of the others.
            grid: What trees have had accepted.
            load: The load.
            level: Its level.
        """
        self._rounds_since += 1
        if self._rounds_since < _ROUNDS_BETWEEN or present.shape == limit:
            return None
        whole = self._count % _WHOLE_TREE_EVERY == _WHOLE_TREE_EVERY - 1
        shape = limit if whole else _next_larger(present.shape, limit)
        accepted = grid.accepted(shape)
        # Its own share of what the size would take if all had it.
        probe_ms = load.drafted_slowdown * drafted_ms(load, shape, accepted) / load.num_sessions
        catch_up_ms = load.draft.ms(_ROWS_BEHIND) if present.shape is None else _LEAST_LOSS_MS
        worth_ms = (1 + accepted) / (present.tokens_per_ms * load.num_sessions)
        # The others' forwards share the cores with its draft, however much it brings.
        lost_ms = max(catch_up_ms, catch_up_ms + probe_ms - worth_ms)
        if not self._savings.spend(lost_ms * self._factors.get(level, 1.0)):
            return None
        self._expected_loss_ms = lost_ms
        self._rounds_since = 0
        self._count += 1
        return shape

    def observe(self, lost_ms: float, level: int) -> None:
        """Takes what a probe took beyond its tokens' worth.

        A draft's catching up above all; it makes later ones at this level dearer.

        Args:
            lost_ms: Milliseconds.
            level: Of the load.
        """
        factor = min(max(lost_ms / self._expected_loss_ms, 1.0), _DEAREST)
        seen = self._factors.get(level, factor)
        self._factors[level] = seen + _WEIGHT * (factor - seen)


def _next_larger(shape: TreeShape | None, limit: TreeShape) -> TreeShape:
    """Returns a tree a level deeper and with about twice the nodes."""
    depth, nodes = (1, 1) if shape is None else (shape.depth, shape.num_draft_tokens)
    return TreeShape(
        min(depth + 1, limit.depth), limit.top_k, min(2 * nodes + 1, limit.num_draft_tokens)
    )
