"""Which tree pays under the present load: tokens per millisecond for every size, root alone too.

A round of `num_sessions` sessions costs their draft forwards, one verify of all their rows, and the
rest of the way (wire, event loops, bookkeeping), which grows with the sessions as well. It brings
each of them the bonus and what is expected to be accepted. Prompts take their time before and
between: with a draft, it reads them too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from arborist.core.acceptance import AcceptanceGrid
from arborist.core.cost_table import CostTable
from arborist.core.shape import TreeShape

# Another size must promise this much more before it replaces the largest or the present one: what
# is promised is known to about a tenth.
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
        output_tokens: Of a session, over 0; infinite = prompts are not worth counting.
        prompt_tokens: Of a session, as far as they have to be computed.
    """

    num_sessions: int
    verify: CostTable
    draft: CostTable
    drafted_slowdown: float = 1.0
    plain_slowdown: float = 1.0
    output_tokens: float = math.inf
    prompt_tokens: float = 0.0


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
    round_ms = load.plain_slowdown * plain_ms(load)
    return TreeSize(None, _tokens_per_ms(load, 1.0, 1.0, round_ms, _prefill_ms(load.verify, load)))


def tree_size(shape: TreeShape, grid: AcceptanceGrid, load: Load) -> TreeSize:
    """Returns what one tree promises."""
    accepted = grid.accepted(shape)
    round_ms = load.drafted_slowdown * drafted_ms(load, shape, accepted)
    prefill_ms = _prefill_ms(load.verify, load) + _prefill_ms(load.draft, load)
    return TreeSize(shape, _tokens_per_ms(load, 1.0 + accepted, 2.0, round_ms, prefill_ms))


def best_tree(
    limit: TreeShape, grid: AcceptanceGrid, load: Load, present: TreeShape | None
) -> TreeSize:
    """Returns the tree that promises most tokens per millisecond, the root alone left out.

    Args:
        limit: Largest tree allowed; its top_k holds for every size.
        grid: What sizes have had accepted.
        load: What they cost.
        present: Size in use; None = the root alone, or none yet. It stays unless another is clearly
            better, or the largest is not clearly worse.
    """
    sizes = [
        tree_size(TreeShape(depth, limit.top_k, nodes), grid, load)
        for depth in range(1, limit.depth + 1)
        for nodes in grid.nodes
        if nodes >= depth  # A tree of fewer nodes than levels is never asked for.
    ]
    best = max(sizes, key=lambda one: one.tokens_per_ms)
    for stays in (limit, present):
        now = next((one for one in sizes if one.shape == stays), None)
        if now is not None and best.tokens_per_ms <= _HYSTERESIS * now.tokens_per_ms:
            return now
    return best


def prompt_ms(load: Load, rows: int) -> float:
    """Returns the milliseconds that prompts add to a forward which they share, undisturbed.

    Args:
        load: The load.
        rows: Of the prompts, 0 or more.
    """
    sessions = load.num_sessions
    return load.verify.ms(sessions + rows, sessions) - load.verify.ms(sessions, sessions)


def _tokens_per_ms(
    load: Load, tokens: float, waits: float, round_ms: float, prefill_ms: float
) -> float:
    """Returns what a session brings over all its time.

    Its prompt waits for about one round of the others, its draft's reading of it for another, and
    every other session's prompt keeps it waiting: short outputs do not pay for a draft.

    Args:
        load: The load.
        tokens: Of a round.
        waits: Rounds that pass without its own tokens.
        round_ms: Of a round.
        prefill_ms: Of a prompt.
    """
    rounds = 1.0 / tokens + waits / load.output_tokens  # Per token.
    return 1.0 / (rounds * round_ms + load.num_sessions * prefill_ms / load.output_tokens)


def _prefill_ms(costs: CostTable, load: Load) -> float:
    return costs.ms(load.prompt_tokens) if load.prompt_tokens else 0.0


def _trip_ms(num_sessions: int) -> float:
    return _TRIP_MS + (num_sessions - 1) * _FURTHER_TRIP_MS
