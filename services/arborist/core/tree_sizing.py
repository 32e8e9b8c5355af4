"""Which tree pays under the present load: tokens per millisecond for every size, root alone too.

A round of `num_sessions` sessions costs their draft forwards, one verify of all their rows, and the
rest of the way (wire, event loops, bookkeeping), which grows with the sessions as well. It brings
each of them the bonus and what is expected to be accepted. The best ratio wins; the root alone is
one of the sizes, so that a busy server never drafts to its cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arborist.core.acceptance import AcceptanceGrid
from arborist.core.cost_table import CostTable
from arborist.core.shape import TreeShape

# Another size must promise this much more before it replaces the present one.
_HYSTERESIS = 1.05
# What lies between forwards may be below zero, where tables say too much; a round is never free.
_LEAST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Load:
    """What rounds cost at present.

    Attributes:
        num_sessions: Sessions that share the target's forwards, at least 1.
        verify: Time of a target forward by its rows.
        draft: Time of a draft forward by its rows.
        drafted_overhead_ms: The rest of a round with a draft, for one session, in milliseconds;
            also sets the tables right and may be below zero.
        plain_overhead_ms: The same without a draft.
    """

    num_sessions: int
    verify: CostTable
    draft: CostTable
    drafted_overhead_ms: float
    plain_overhead_ms: float


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
    """Returns the milliseconds of a round of the root alone, without what lies between forwards."""
    return load.verify.ms(load.num_sessions)


def drafted_ms(load: Load, shape: TreeShape, accepted: float) -> float:
    """Returns the milliseconds of a drafted round, without what lies between forwards.

    Args:
        load: The load.
        shape: Size of the tree.
        accepted: Drafted tokens accepted per round: the next Extend's rows.
    """
    sessions = load.num_sessions
    levels = (shape.depth - 1) * load.draft.ms(sessions * shape.top_k)
    extend = load.draft.ms(sessions * (1 + accepted))
    return extend + levels + load.verify.ms(sessions * (1 + shape.num_draft_tokens))


def best_size(limit: TreeShape, grid: AcceptanceGrid, load: Load, present: TreeSize) -> TreeSize:
    """Returns the size that promises most tokens per millisecond.

    Args:
        limit: Largest tree allowed; its top_k holds for every size.
        grid: What sizes have had accepted.
        load: What they cost.
        present: Size in use; it stays unless another is clearly better.
    """
    alone_ms = plain_ms(load)
    rest_ms = load.num_sessions * load.plain_overhead_ms
    plain_rate = 1.0 / max(alone_ms + rest_ms, _LEAST_SHARE * alone_ms)
    rates = _drafted_rates(limit, grid, load)  # [D, N]
    depth, column = np.unravel_index(int(rates.argmax()), rates.shape)
    best = TreeSize(None, plain_rate)
    if rates[depth, column] > plain_rate:
        shape = TreeShape(int(depth) + 1, limit.top_k, grid.nodes[int(column)])
        best = TreeSize(shape, float(rates[depth, column]))
    now = TreeSize(present.shape, _rate_of(present.shape, grid, rates, plain_rate))
    return best if best.tokens_per_ms > _HYSTERESIS * now.tokens_per_ms else now


def _rate_of(
    shape: TreeShape | None,
    grid: AcceptanceGrid,
    rates: npt.NDArray[np.float64],
    plain_rate: float,
) -> float:
    if shape is None:
        return plain_rate
    if shape.depth > rates.shape[0] or shape.num_draft_tokens not in grid.nodes:
        return 0.0
    return float(rates[shape.depth - 1, grid.nodes.index(shape.num_draft_tokens)])


def _drafted_rates(limit: TreeShape, grid: AcceptanceGrid, load: Load) -> npt.NDArray[np.float64]:
    """Returns tokens per millisecond of one session for every depth and number of nodes."""
    sessions, width = load.num_sessions, limit.top_k
    accepted = grid.expected  # [D, N]
    extend = load.draft.ms(sessions * (1.0 + float(accepted.mean())))
    level = load.draft.ms(sessions * width)
    depths = np.arange(accepted.shape[0])[:, None]  # [D, 1]: levels below the first
    verify = np.array([load.verify.ms(sessions * (1 + nodes)) for nodes in grid.nodes])  # [N]
    rest = sessions * load.drafted_overhead_ms
    forwards = extend + depths * level + verify[None, :]  # [D, N]
    times = np.maximum(forwards + rest, _LEAST_SHARE * forwards)
    # A tree of fewer nodes than levels is never asked for.
    fits = np.array(grid.nodes)[None, :] > depths
    rates: npt.NDArray[np.float64] = np.where(fits, (1.0 + accepted) / times, 0.0)
    return rates
