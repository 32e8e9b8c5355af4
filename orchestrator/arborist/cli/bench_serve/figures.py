"""The figures of one run, and of several runs of one point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from arborist.cli.bench_serve.load_run import RunResult
from arborist.cli.bench_serve.record import RequestRecord

Json = dict[str, Any]
Seconds = npt.NDArray[np.float64]
_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class ServiceLevel:
    """What a request must keep to count as good; None = not asked for.

    Attributes:
        first_token_ms: Longest time to the first token.
        inter_token_ms: Largest mean time per token after the first.
    """

    first_token_ms: float | None = None
    inter_token_ms: float | None = None

    def holds(self, record: RequestRecord) -> bool:
        """Says whether a request was completed in time."""
        first_s, inter_s = record.first_token_s, record.mean_inter_token_s
        return (
            record.outcome == "completed"
            and first_s is not None
            and (self.first_token_ms is None or 1e3 * first_s <= self.first_token_ms)
            and (
                self.inter_token_ms is None
                or inter_s is None
                or 1e3 * inter_s <= self.inter_token_ms
            )
        )


def run_figures(result: RunResult, level: ServiceLevel) -> Json:
    """Returns what clients saw of one run.

    Tokens count when they came, latencies of completed requests only.

    Args:
        result: The run.
        level: What counts as good.
    """
    records = result.records
    completed = [one for one in records if one.outcome == "completed"]
    outcomes = Counter(one.outcome for one in records)
    took_s = max(result.end_s - result.begin_s, 1e-9)
    loaded_s = max(result.loaded_until_s - result.begin_s, 1e-9)
    good = sum(level.holds(one) for one in completed)
    return {
        "duration_s": round(took_s, 3),
        "requests": len(records),
        "completed": outcomes["completed"],
        "cancelled": outcomes["cancelled"],
        "unfinished": outcomes["unfinished"],
        "errors": dict(Counter(one.reason for one in records if one.outcome == "failed")),
        "output_tokens": sum(one.num_tokens for one in records),
        "output_tokens_per_s": round(_tokens_until(records, result.end_s) / took_s, 2),
        "loaded_tokens_per_s": round(_tokens_until(records, result.loaded_until_s) / loaded_s, 2),
        "requests_per_s": round(len(completed) / took_s, 3),
        "goodput_requests_per_s": round(good / took_s, 3),
        **_acceptance(records),
        "ttft_ms": _spread([one.first_token_s or 0.0 for one in completed]),
        "inter_token_ms": _spread(_joined([_token_gaps(one) for one in completed])),
        "message_gap_ms": _spread(_joined([np.diff(one.message_s) for one in completed])),
        "end_to_end_ms": _spread([one.end_s - one.due_s for one in completed]),
    }


def median_figures(runs: Sequence[Json]) -> Json:
    """Returns the median of every number over runs of one point; errors are added up.

    Args:
        runs: From `run_figures`, at least one. What a run has no figure for, such as the forwards
            of a draft that rested all the time, is left out of the median.
    """
    merged: Json = {}
    for key in dict.fromkeys(key for run in runs for key in run):
        values = [run[key] for run in runs if run.get(key) is not None]
        if key == "errors":
            merged[key] = dict(sum((Counter(one) for one in values), Counter()))
        elif values and isinstance(values[0], dict):
            merged[key] = median_figures(values)
        else:
            merged[key] = median(values) if values else None
    return merged


def _tokens_until(records: Sequence[RequestRecord], end_s: float) -> int:
    return sum(
        count
        for one in records
        for at_s, count in zip(one.message_s, one.message_tokens, strict=True)
        if at_s <= end_s
    )


def _acceptance(records: Sequence[RequestRecord]) -> Json:
    rounds = sum(one.num_rounds for one in records)
    accepted = sum(one.accepted_tokens for one in records)
    nodes = sum(one.draft_tokens for one in records)
    return {
        "rounds": rounds,
        "tau": round(1 + accepted / rounds, 3) if rounds else None,
        "draft_tokens_per_round": round(nodes / rounds, 2) if rounds else None,
    }


def _token_gaps(record: RequestRecord) -> Seconds:
    """Spreads the gap before each message evenly over its tokens, in seconds."""
    counts = np.asarray(record.message_tokens[1:], dtype=np.int64)
    gaps = np.diff(record.message_s)
    carrying = counts > 0
    return np.repeat(gaps[carrying] / counts[carrying], counts[carrying])


def _joined(parts: Sequence[Seconds]) -> Seconds:
    return np.concatenate(parts) if parts else np.empty(0)


def _spread(seconds: Sequence[float] | Seconds) -> Json:
    values = 1e3 * np.asarray(seconds, dtype=np.float64)
    if not len(values):
        return {"mean": None, **{f"p{one}": None for one in _PERCENTILES}}
    marks = np.percentile(values, _PERCENTILES)
    return {
        "mean": round(float(values.mean()), 3),
        **{f"p{one}": round(float(at), 3) for one, at in zip(_PERCENTILES, marks, strict=True)},
    }
