"""Which tree pays under the present load: tokens per millisecond for every size, root alone too.

A round of `num_sessions` sessions costs their draft forwards, one verify of all their rows, and the
rest of the way (wire, event loops, bookkeeping), which grows with the sessions as well. It brings
each of them the bonus and what is expected to be accepted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arborist.core.acceptance import AcceptanceGrid
from arborist.core.cost_table import CostTable
from arborist.core.shape import TreeShape

# Another size must promise this much more before it replaces the present one.
_HYSTERESIS = 1.1
# A trip to a worker and back beside its forward, and what each further session adds to it: without
# them, rounds of small trees would look better than they are. `Load`'s slowdowns set the sum right.
_TRIP_MS = 1.5
_FURTHER_TRIP_MS = 0.5


@dataclass(frozen=True, slots=True)
class Load:
    """What rounds cost at present.

    Attributes:
        num_sessions: Sessions that share the target's forwards, at least 1.
        verify: Time of a target forward by its rows, undisturbed.
        draft: Time of a draft forward by its rows, undisturbed.
        drafted_slowdown: Times that a round with a draft takes what its forwards and trips would
            undisturbed; over 0.
        plain_slowdown: The same of a round of the root alone.
    """

    num_sessions: int
    verify: CostTable
    draft: CostTable
    drafted_slowdown: float = 1.0
    plain_slowdown: float = 1.0


@dataclass(frozen=True, slots=True)
class TreeSize:
    """A size, and what it promises.

    Attributes:
        shape: Bounds of the tree; None = the root alone.
        tokens_per_ms: Of one session.
    """

    shape: TreeShape | None
    tokens_per_ms: float


def plain_ms(load: Load) -> float:
    """Returns the milliseconds of a round of the root alone, undisturbed."""
    sessions = load.num_sessions
    return load.verify.ms(sessions, sessions) + _trip_ms(sessions)


def drafted_ms(load: Load, shape: TreeShape, accepted: float) -> float:
    """Returns the milliseconds of a drafted round, undisturbed.

    Args:
        load: The load.
        shape: Size of the tree.
        accepted: Drafted tokens accepted per round: the next Extend's rows.
    """
    sessions = load.num_sessions
    levels = (shape.depth - 1) * load.draft.ms(sessions * shape.top_k, sessions)
    extend = load.draft.ms(sessions * (1 + accepted), sessions)
    verify = load.verify.ms(sessions * (1 + shape.num_draft_tokens), sessions)
    return extend + levels + verify + 2 * _trip_ms(sessions)


def root_alone(load: Load) -> TreeSize:
    """Returns what plain decoding promises."""
    return TreeSize(None, 1.0 / (load.plain_slowdown * plain_ms(load)))


def tree_size(shape: TreeShape, grid: AcceptanceGrid, load: Load) -> TreeSize:
    """Returns what one tree promises."""
    accepted = grid.accepted(shape)
    took_ms = load.drafted_slowdown * drafted_ms(load, shape, accepted)
    return TreeSize(shape, (1.0 + accepted) / took_ms)


def best_tree(
    limit: TreeShape, grid: AcceptanceGrid, load: Load, present: TreeShape | None
) -> TreeSize:
    """Returns the tree that promises most tokens per millisecond, the root alone left out.

    Args:
        limit: Largest tree allowed; its top_k holds for every size.
        grid: What sizes have had accepted.
        load: What they cost.
        present: Size in use; it stays unless another is clearly better. None = none.
    """
    rates = _rates(limit, grid, load)  # [D, N]
    depth, column = np.unravel_index(int(rates.argmax()), rates.shape)
    best = float(rates[depth, column])
    if present is not None and present.depth <= rates.shape[0]:
        now = _rate_of(present, grid, rates)
        if best <= _HYSTERESIS * now:
            return TreeSize(present, now)
    return TreeSize(TreeShape(int(depth) + 1, limit.top_k, grid.nodes[int(column)]), best)


def _trip_ms(num_sessions: int) -> float:
    return _TRIP_MS + (num_sessions - 1) * _FURTHER_TRIP_MS


def _rate_of(shape: TreeShape, grid: AcceptanceGrid, rates: npt.NDArray[np.float64]) -> float:
    if shape.num_draft_tokens not in grid.nodes:
        return 0.0
    return float(rates[shape.depth - 1, grid.nodes.index(shape.num_draft_tokens)])


def _rates(limit: TreeShape, grid: AcceptanceGrid, load: Load) -> npt.NDArray[np.float64]:
    """Returns tokens per millisecond of one session for every depth and number of nodes."""
    sessions, width = load.num_sessions, limit.top_k
    accepted = grid.expected  # [D, N]
    extend = load.draft.ms(sessions * (1.0 + float(accepted.mean())), sessions)
    level = load.draft.ms(sessions * width, sessions)
    depths = np.arange(accepted.shape[0])[:, None]  # [D, 1]: levels below the first
    rows = [sessions * (1 + nodes) for nodes in grid.nodes]
    verify = np.array([load.verify.ms(count, sessions) for count in rows])  # [N]
    times = extend + depths * level + verify[None, :] + 2 * _trip_ms(sessions)  # [D, N]
    # A tree of fewer nodes than levels is never asked for.
    fits = np.array(grid.nodes)[None, :] > depths
    rates: npt.NDArray[np.float64] = np.where(
        fits, (1.0 + accepted) / (load.drafted_slowdown * times), 0.0
    )
    return rates
