"""Turns outputs into the figures of schema arborist.bench/1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles
from typing import Any

from arborist.cli.bench.flips import Margin, Place, flip_figures
from arborist.cli.bench.output import Output
from arborist.orchestrator.round import Round

Json = dict[str, Any]
_ACCEPTANCE = (
    "tau",
    "tau_loop_free",
    "bytes_per_round",
    "draft_tokens_per_round",
    "draft_calls_per_round",
    "draft_forwards_per_round",
)
_DRAFT_PHASES = ("draft.extend", "draft.expand")
RATIOS = (
    ("eagle2", "hf_generate"),
    ("eagle2", "plain"),
    ("eagle2", "monolith"),
    ("plain", "hf_generate"),
    ("eagle2", "eagle1_static"),
    ("eagle2", "chain"),
)


def mode_figures(
    repetitions: Sequence[Sequence[Output]],
    plain: Sequence[Output] | None,
    decode_text: Callable[[list[int]], str],
    margins: Mapping[Place, Margin],
) -> Json:
    """Returns the figures of one mode.

    Args:
        repetitions: Outputs by repetition and prompt; every repetition has the same prompts.
        plain: Outputs of the mode to compare with, by prompt; None = not run.
        decode_text: Makes text of tokens, for bytes per round.
        margins: How close the target's choice was where outputs differ from `plain`.
    Returns:
        Throughput over all prompts as the median of repetitions, quartiles, and what the last
        repetition's outputs say of acceptance, loops and equality.
    """
    speeds = [_tokens_per_s(outputs) for outputs in repetitions]
    outputs = repetitions[-1]
    figures: Json = {
        "tokens_per_s": round(median(speeds), 2),
        "tokens_per_s_quartiles": [round(value, 2) for value in _quartiles(speeds)],
        "prompts": len(outputs),
        "tokens": sum(len(output.token_ids) for output in outputs),
        "loop_share": round(sum(output.looping for output in outputs) / len(outputs), 4),
    }
    figures |= _acceptance(outputs, decode_text)
    figures |= _round_times(repetitions)
    if plain is not None:
        figures |= flip_figures(outputs, plain, margins)
    return figures


def ratios(speeds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Returns ratio medians over repetitions, measured side by side.

    Args:
        speeds: Tokens per second by mode and repetition.
    """
    return {
        f"{one}/{other}": round(
            median(a / b for a, b in zip(speeds[one], speeds[other], strict=True)), 3
        )
        for one, other in RATIOS
        if one in speeds and other in speeds
    }


def repetition_speeds(repetitions: Sequence[Sequence[Output]]) -> list[float]:
    """Returns decode-only tokens per second of every repetition."""
    return [_tokens_per_s(outputs) for outputs in repetitions]


def _tokens_per_s(outputs: Sequence[Output]) -> float:
    elapsed = sum(output.decode_s for output in outputs)
    return sum(output.decoded_count for output in outputs) / elapsed if elapsed > 0 else 0.0


def _quartiles(values: Sequence[float]) -> list[float]:
    if len(values) < 2:
        return [values[0], values[0]]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return [low, high]


def _acceptance(outputs: Sequence[Output], decode_text: Callable[[list[int]], str]) -> Json:
    rounds = sum(len(output.rounds) for output in outputs)
    if rounds == 0:
        return {"rounds": 0, **dict.fromkeys(_ACCEPTANCE)}
    num_bytes = sum(
        len(decode_text(output.token_ids).encode())
        - len(decode_text(output.token_ids[:1]).encode())
        for output in outputs
        if output.rounds
    )
    return {
        "rounds": rounds,
        "tau": _tau(outputs),
        "tau_loop_free": _tau([output for output in outputs if not output.looping]),
        "bytes_per_round": round(num_bytes / rounds, 2),
        "draft_tokens_per_round": round(
            sum(one.num_draft_tokens for output in outputs for one in output.rounds) / rounds, 2
        ),
        "draft_calls_per_round": round(
            sum(_draft_calls(one) for output in outputs for one in output.rounds) / rounds, 2
        ),
        "draft_forwards_per_round": round(
            sum(_draft_forwards(one) for output in outputs for one in output.rounds) / rounds, 2
        ),
        "rounds_without_draft": sum(
            not one.speculated for output in outputs for one in output.rounds
        ),
    }


def _draft_calls(round_: Round) -> int:
    """Returns the commands that went to the draft."""
    return sum(phase.name in _DRAFT_PHASES and not phase.same_call for phase in round_.phases)


def _draft_forwards(round_: Round) -> int:
    """Returns the levels it computed; one command may ask for several."""
    return sum(phase.name in _DRAFT_PHASES for phase in round_.phases)


def _tau(outputs: Sequence[Output]) -> float | None:
    counts = [one.accepted_count + 1 for output in outputs for one in output.rounds]
    return round(sum(counts) / len(counts), 3) if counts else None


def _round_times(repetitions: Sequence[Sequence[Output]]) -> Json:
    times = [one.times for outputs in repetitions for output in outputs for one in output.rounds]
    if not times:
        return {"round_ms": None}
    count = len(times)
    return {
        "round_ms": {
            "draft_compute": round(sum(t.draft_compute_ms for t in times) / count, 3),
            "verify_compute": round(sum(t.verify_compute_ms for t in times) / count, 3),
            "transport": round(sum(t.transport_ms for t in times) / count, 3),
            "controller": round(sum(t.controller_ms for t in times) / count, 3),
            "total": round(sum(t.total_ms for t in times) / count, 3),
        }
    }
