"""Forwards of chosen sizes before a target serves, to know what rows cost."""

from __future__ import annotations

from arborist.common.busy_clock import BusyClock
from arborist.core.engine import Prefill, SessionKey, TargetEngine, TargetOpen, Verify
from arborist.core.errors import ArboristError, ResourceExhaustedError
from arborist.core.sampling import SamplingParams
from arborist.core.shape import MAX_NUM_DRAFT_TOKENS

_SESSION: SessionKey = ("arborist", "rehearsal")
_PROMPT_TOKENS = 4


def rehearse(engine: TargetEngine, rows: int, clock: BusyClock) -> float | None:
    """Verifies a chain of `rows` − 1 nodes in a session of its own.

    Args:
        engine: The engine; nothing of the session is left in it.
        rows: Rows of the forward, root included.
        clock: Times it.
    Returns:
        Milliseconds of the forward; None when one session cannot have so many rows, or memory
        does not suffice.
    Raises:
        ArboristError: It did not work.
    """
    nodes = rows - 1
    length = _PROMPT_TOKENS + 1
    if nodes > MAX_NUM_DRAFT_TOKENS or length + rows > engine.info.context_length:
        return None
    if length + rows > engine.kv_capacity_tokens - engine.kv_reserved_tokens:
        return None
    try:
        engine.open(_SESSION, TargetOpen(SamplingParams(), None, length, nodes))
        prompt = Prefill(_SESSION, 0, [0] * _PROMPT_TOKENS, last=True, want_features=False)
        tree = Verify(_SESSION, length, 0, [0] * nodes, list(range(nodes)), want_features=False)
        _run(engine, prompt)
        start_ns = clock()
        _run(engine, tree)
        return (clock() - start_ns) / 1e6
    except ResourceExhaustedError:
        return None
    finally:
        engine.release(_SESSION)


def _run(engine: TargetEngine, work: Prefill | Verify) -> None:
    (outcome,) = engine.run([work])
    if isinstance(outcome, ArboristError):
        raise outcome
