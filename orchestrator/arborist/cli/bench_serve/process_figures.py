"""What the server's processes spent on a run, and what they kept after it."""

from __future__ import annotations

from typing import Any

from arborist.cli.bench_serve.process_metrics import ProcessState

Json = dict[str, Any]
_KEPT = ("num_tasks", "num_descriptors", "num_sessions", "kv_reserved_tokens", "num_requests")


def spent(
    before: dict[str, ProcessState], after: dict[str, ProcessState], rounds: int, took_s: float
) -> Json:
    """Returns the CPU time of every process and what the workers' forwards looked like.

    Args:
        before: States when the run began.
        after: States when it had ended.
        rounds: Session-rounds of the run.
        took_s: Duration of the run, in seconds.
    """
    return {name: _spent(before[name], state, rounds, took_s) for name, state in after.items()}


def kept(before: dict[str, ProcessState], after: dict[str, ProcessState]) -> Json:
    """Returns what every process holds before and after, and by how much its memory grew.

    Args:
        before: States when nothing was sent yet.
        after: States once everything had ended.
    """
    return {
        name: {
            **{
                field: [getattr(before[name], field), getattr(state, field)]
                for field in _KEPT
                if getattr(state, field) is not None
            },
            "memory_growth_bytes": _less(state.memory_bytes, before[name].memory_bytes),
        }
        for name, state in after.items()
    }


def _spent(before: ProcessState, after: ProcessState, rounds: int, took_s: float) -> Json:
    cpu_s = _less(after.cpu_s, before.cpu_s)
    figures: Json = {
        "cpu_s": None if cpu_s is None else round(cpu_s, 3),
        "cpu_ms_per_round": None if cpu_s is None or not rounds else round(1e3 * cpu_s / rounds, 4),
    }
    forwards = _less(after.num_forwards, before.num_forwards)
    if not forwards:
        return figures
    forward_s = _less(after.forward_s, before.forward_s) or 0.0
    rows = _less(after.forward_rows, before.forward_rows) or 0.0
    tokens = _less(after.forward_tokens, before.forward_tokens) or 0.0
    return {
        **figures,
        "forwards": int(forwards),
        "forward_ms": round(1e3 * forward_s / forwards, 3),
        "commands_per_forward": round(rows / forwards, 2),
        "tokens_per_forward": round(tokens / forwards, 2),
        "busy_share": round(forward_s / took_s, 3),
    }


def _less(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before
