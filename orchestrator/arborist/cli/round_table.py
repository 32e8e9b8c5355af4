"""Rounds as a table: how large the tree was, what was accepted, where the time went."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from arborist.client import Completion, RoundEvent

_COLUMNS = (
    "",
    "round",
    "tree",
    "depth",
    "accepted",
    "tau",
    "draft",
    "verify",
    "wire",
    "control",
    "total",
)


def round_table(completions: Sequence[Completion], max_rounds: int) -> Table:
    """Returns a table of the first rounds of each completion, and their means over all rounds.

    Args:
        completions: One section each.
        max_rounds: Rounds shown of each.
    """
    table = Table(
        title="rounds: nodes, tokens, and where the milliseconds went",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for number, completion in enumerate(completions, start=1):
        rounds = [one for one in completion.rounds if one.round_index >= 0]
        num_accepted = 0
        for count, one in enumerate(rounds[:max_rounds], start=1):
            num_accepted += one.accepted_count
            label = str(number) if count == 1 else ""
            table.add_row(label, str(one.round_index), *_cells([one], 1 + num_accepted / count))
        if rounds:
            label = f"all {len(rounds)}"
            tau = completion.summary.speculation.tau
            table.add_row("", label, *_cells(rounds, tau), style="bold", end_section=True)
    return table


def _cells(rounds: Sequence[RoundEvent], tau: float) -> list[str]:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    digits = 0 if len(rounds) == 1 else 1
    return [
        f"{mean([one.num_draft_tokens for one in rounds]):.{digits}f}",
        f"{mean([one.depth for one in rounds]):.{digits}f}",
        f"{mean([one.accepted_count for one in rounds]):.{digits}f}",
        f"{tau:.2f}",
        f"{mean([one.times.draft_compute_ms for one in rounds]):.1f}",
        f"{mean([one.times.verify_compute_ms for one in rounds]):.1f}",
        f"{mean([one.times.transport_ms for one in rounds]):.1f}",
        f"{mean([one.times.controller_ms for one in rounds]):.1f}",
        f"{mean([one.times.total_ms for one in rounds]):.1f}",
    ]
