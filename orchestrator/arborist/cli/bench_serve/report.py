"""The report of a measurement: schema arborist.bench-serve/1, and its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from arborist.cli.bench_serve.figures import median_figures
from arborist.cli.bench_serve.load_point import LoadPoint

Json = dict[str, Any]
SCHEMA = "arborist.bench-serve/1"
_SPEED = "loaded_tokens_per_s"
_COLUMNS = (
    "load",
    "tokens/s",
    "loaded tok/s",
    "req/s",
    "goodput",
    "tau",
    "TTFT ms p50/p90/p99",
    "inter-token ms p50/p90/p99",
    "end-to-end ms p50/p90/p99",
    "failed",
)
_PROCESS_COLUMNS = (
    "cpu_s",
    "cpu_ms_per_round",
    "forwards",
    "forward_ms",
    "commands_per_forward",
    "tokens_per_forward",
    "busy_share",
)


def point_objects(runs: Mapping[LoadPoint, Sequence[Json]]) -> list[Json]:
    """Returns one object per point: how it was loaded, medians, and every run.

    Args:
        runs: Figures by point and repetition.
    """
    return [
        {
            "name": point.name,
            "speculation": point.speculation,
            "concurrency": point.concurrency,
            "rate_per_s": point.rate_per_s,
            "figures": median_figures(figures),
            "runs": list(figures),
        }
        for point, figures in runs.items()
    ]


def ratios(runs: Mapping[LoadPoint, Sequence[Json]]) -> dict[str, float]:
    """Returns tokens/s against plain decoding of the same load, and against one plain client.

    Args:
        runs: Figures by point and repetition.
    Returns:
        "point / other point" → median of the ratios of runs measured side by side.
    """
    found: dict[str, float] = {}
    for point in runs:
        same_load = LoadPoint("off", point.concurrency, point.rate_per_s)
        for other in (same_load, LoadPoint("off", 1)):
            if other == point or other not in runs:
                continue
            pairs = zip(runs[point], runs[other], strict=True)
            values = [one[_SPEED] / base[_SPEED] for one, base in pairs if base[_SPEED]]
            if values:
                found[f"{point.name} / {other.name}"] = round(median(values), 3)
    return found


def print_report(report: Json) -> None:
    """Prints points, ratios and what the server's processes did as tables."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=190)  # In a log every column counts.
    table = Table(title=_title(report))
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=name == "load")
    for point in report["points"]:
        table.add_row(point["name"], *_cells(point["figures"]))
    console.print(table)
    _print_processes(console, report)
    for name, value in report["ratios"].items():
        console.print(f"{name} = {value:.3f}")
    if report["kept"] is not None:
        for name, values in report["kept"].items():
            parts = [f"{key}={_pair(value)}" for key, value in values.items()]
            console.print(f"kept by {name}: {' '.join(parts)}")


def _cells(figures: Json) -> list[str]:
    errors = {**figures["errors"]}
    if figures["unfinished"]:
        errors["unfinished"] = int(figures["unfinished"])
    return [
        f"{figures['output_tokens_per_s']:.1f}",
        f"{figures[_SPEED]:.1f}",
        f"{figures['requests_per_s']:.2f}",
        f"{figures['goodput_requests_per_s']:.2f}",
        "" if figures["tau"] is None else f"{figures['tau']:.2f}",
        *(_marks(figures[name]) for name in ("ttft_ms", "inter_token_ms", "end_to_end_ms")),
        " ".join(f"{reason}:{count}" for reason, count in errors.items()),
    ]


def _print_processes(console: Console, report: Json) -> None:
    rows = [
        (point["name"], name, figures)
        for point in report["points"]
        for name, figures in point["figures"]["processes"].items()
    ]
    if not rows:
        return
    table = Table(title="the server's processes")
    for heading in ("load", "process", *(name.replace("_", " ") for name in _PROCESS_COLUMNS)):
        table.add_column(heading, justify="right")
    for load, name, figures in rows:
        table.add_row(load, name, *(_number(figures.get(column)) for column in _PROCESS_COLUMNS))
    console.print(table)


def _title(report: Json) -> str:
    settings = report["settings"]
    amount = (
        f"{settings['duration_s']:g} s"
        if settings["num_requests"] is None
        else f"{settings['num_requests']} requests"
    )
    return (
        f"{amount} a run, {settings['repetitions']} runs, {settings['max_tokens']} tokens, "
        f"temperature {settings['temperature']:g}, {report['machine']['cores']} cores"
    )


def _marks(values: Json) -> str:
    if values["p50"] is None:
        return ""
    return " / ".join(f"{values[name]:.1f}" for name in ("p50", "p90", "p99"))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _pair(value: object) -> str:
    return "→".join(f"{one:g}" for one in value) if isinstance(value, list) else f"{value}"
