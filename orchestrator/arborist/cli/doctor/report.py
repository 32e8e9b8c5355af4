"""What the doctor says: a table and a verdict, or the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from arborist.cli.doctor.diagnosis import Cause, Comparison, Finding, Measurements
from arborist.cli.doctor.fit import Fit, describe_layers
from arborist.cli.doctor.installation import Installation

_DIGEST_LENGTH = 12
# What was looked at, what was found, and the causes that mark it.
_Row: TypeAlias = tuple[str, str, Sequence[Cause]]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found.

    Attributes:
        installation: Versions and devices.
        target: Name of the target.
        draft: Name of the head.
        place: Device and dtype, in words.
        fit: What head and target say of each other; None = they do not fit.
        measured: None = they do not fit.
        findings: Most likely cause first; empty = nothing is wrong.
    """

    installation: Installation
    target: str
    draft: str
    place: str
    fit: Fit | None
    measured: Measurements | None
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """Returns what is wrong and what to do, in one line."""
        if not self.findings:
            tau = self.measured.tau if self.measured is not None else None
            return (
                "fine" if tau is None else f"fine: the head fits and is fed rightly, tau {tau:.2f}"
            )
        first = self.findings[0]
        more = len(self.findings) - 1
        rest = f" (and {more} more)" if more else ""
        return f"wrong: {first.cause.value}: {first.evidence}; {first.advice}{rest}"

    def json(self) -> dict[str, Any]:
        """Returns everything as one JSON object."""
        measured = None if self.measured is None else asdict(self.measured)
        return {
            "ok": not self.findings,
            "verdict": self.verdict,
            "findings": [{**asdict(one), "cause": one.cause.name.lower()} for one in self.findings],
            "versions": self.installation.versions,
            "devices": list(self.installation.devices),
            "target": self.target,
            "draft": self.draft,
            "place": self.place,
            "fit": None if self.fit is None else asdict(self.fit),
            "measured": measured,
        }

    def table(self) -> Table:
        """Returns everything as a table; what is wrong is marked."""
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("check", no_wrap=True)
        table.add_column("found", overflow="fold")
        for name, found, causes in self._rows():
            wrong = any(one.cause in causes for one in self.findings)
            # As Text, because a path in brackets is no markup.
            shown = Text(found + (" ← wrong" if wrong else ""))
            table.add_row(name, shown, style="red" if wrong else "")
        return table

    def _rows(self) -> list[_Row]:
        versions = ", ".join(f"{name} {one}" for name, one in self.installation.versions.items())
        devices: list[_Row] = [("device", one, ()) for one in self.installation.devices]
        rows: list[_Row] = [
            ("versions", versions, (Cause.MISSING_PACKAGE,)),
            *devices,
            ("target", self.target, ()),
            ("head", self.draft, ()),
            ("run on", self.place, ()),
        ]
        if self.fit is None or self.measured is None:
            refused = [one.evidence for one in self.findings if one.cause is Cause.UNFIT]
            return [*rows, ("fit", "; ".join(refused), (Cause.UNFIT,))]
        return [*rows, *_fit_rows(self.fit), *_measured_rows(self.measured)]


def _fit_rows(fit: Fit) -> list[_Row]:
    distance = fit.embedding_distance
    own = (
        "the target's"
        if distance is None
        else f"its own copy, {distance:.1%} away from the target's"
    )
    digests = ", ".join(
        f"{name} {digest[:_DIGEST_LENGTH] or 'unknown'}"
        for name, digest in (
            ("head", fit.head_digest),
            ("target", fit.target_digest),
            ("embedding", fit.embedding_digest),
        )
    )
    return [
        ("fit", f"{fit.num_tensors} tensors, all known and of the right shape", ()),
        ("digests", digests, ()),
        ("embedding", own, ()),
        ("features", fit.features, (Cause.FEATURE_LAYER,)),
    ]


def _measured_rows(measured: Measurements) -> list[_Row]:
    tau = "no rounds" if measured.tau is None else f"{measured.tau:.2f}"
    if measured.is_low:
        tau += " (low)"
    shifts = ", ".join(
        f"{share:.0%} at shift {shift:+d}" if shift else f"{share:.0%}"
        for shift, share in sorted(measured.agreement.items(), key=lambda one: abs(one[0]))
    )
    best = measured.best_layers
    layers = (
        "not tried, no need"
        if best is None
        else f"{best.agreement:.0%} with "
        f"{describe_layers(best.layers, measured.num_layers)}, on the first prompts "
        f"{measured.agreement_as_asked or 0:.0%} as asked"
    )
    low = (Cause.OTHER_TARGET, Cause.UNEXPLAINED)
    return [
        ("tau", tau, low),
        ("with chat template", _compared(measured.with_template), (Cause.CHAT_TEMPLATE,)),
        ("with bos", _compared(measured.with_bos), (Cause.BOS,)),
        ("first choices right", shifts or "too little output", (Cause.PAIRING,)),
        ("best other layers", layers, (Cause.FEATURE_LAYER,)),
        ("quantised", measured.quantisation or "no sign of it", (Cause.QUANTISED_TARGET,)),
    ]


def _compared(tau: Comparison | None) -> str:
    if tau is None:
        return "nothing to change in these prompts"
    return f"tau {tau.changed:.2f}, {tau.as_given:.2f} as given"
