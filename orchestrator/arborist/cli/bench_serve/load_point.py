"""One point of a measurement: how the load comes, and how the server is to decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from arborist.client.prompt import Speculation
from arborist.core.errors import InvalidArgumentError
from arborist.core.policy_settings import POLICY_NAMES

SPECULATION_MODES = ("on", "off", "adaptive", "default", *POLICY_NAMES)
_MAX_CONCURRENCY = 65_536
_MAX_RATE_PER_S = 100_000.0


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """A closed or an open loop: either `concurrency` or `rate_per_s` is set.

    Attributes:
        speculation: on (trees of one size), off, adaptive (trees that follow the load), default
            (the server's), or a policy's name.
        concurrency: Clients of a closed loop; each sends its next request when one has ended.
        rate_per_s: Mean arrivals of an open loop, per second, whatever became of earlier ones.
    """

    speculation: str
    concurrency: int | None = None
    rate_per_s: float | None = None

    @property
    def name(self) -> str:
        """Returns how tables and JSON name it."""
        load = f"rate={self.rate_per_s:g}" if self.concurrency is None else f"c={self.concurrency}"
        return f"{self.speculation} {load}"

    def options(self, shape: Speculation) -> Speculation | None:
        """Returns what its requests say about drafting.

        Args:
            shape: Policy and size of the tree that were asked for; None fields = the server's.
        """
        if self.speculation == "off":
            return Speculation(enabled=False)
        if self.speculation == "default":
            return None if shape == Speculation() else shape
        policy = self.speculation if self.speculation in POLICY_NAMES else shape.policy
        adaptive = self.speculation == "adaptive"
        return Speculation(True, shape.depth, shape.top_k, shape.num_draft_tokens, policy, adaptive)


def load_points(speculation: str, concurrency: str, rate: str | None) -> list[LoadPoint]:
    """Reads the points to measure from lists with commas.

    Args:
        speculation: Of SPECULATION_MODES.
        concurrency: Integers; not used when `rate` is given.
        rate: Requests per second; None = closed loop.
    Returns:
        Every load with every mode, modes of one load side by side.
    Raises:
        InvalidArgumentError: A value is unknown, out of range or named twice.
    """
    modes = _distinct("--speculation", speculation)
    for mode in modes:
        if mode not in SPECULATION_MODES:
            raise InvalidArgumentError("--speculation", mode, f"of {', '.join(SPECULATION_MODES)}")
    if rate is not None:
        rates = [_number(one) for one in _distinct("--rate", rate)]
        return [LoadPoint(mode, rate_per_s=one) for one in rates for mode in modes]
    counts = [_count(one) for one in _distinct("--concurrency", concurrency)]
    return [LoadPoint(mode, concurrency=one) for one in counts for mode in modes]


def in_turn(points: Sequence[LoadPoint], repetition: int) -> list[LoadPoint]:
    """Returns the order of a repetition: modes of one load take turns, there and back.

    Whoever comes behind a mode that keeps the cores busier is some percent slower: none is to
    follow the same one every time.

    Args:
        points: All points, modes of one load side by side.
        repetition: From 0.
    """
    ordered: list[LoadPoint] = []
    for _, same_load in groupby(points, key=lambda one: (one.concurrency, one.rate_per_s)):
        modes = list(same_load)
        first = repetition // 2 % len(modes)
        turned = modes[first:] + modes[:first]
        ordered += reversed(turned) if repetition % 2 else turned
    return ordered


def _distinct(flag: str, text: str) -> Sequence[str]:
    values = [one.strip() for one in text.split(",") if one.strip()]
    if not values or len(set(values)) != len(values):
        raise InvalidArgumentError(flag, text, "one or more distinct values with commas")
    return values


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_CONCURRENCY:
        raise InvalidArgumentError("--concurrency", text, f"integers in [1, {_MAX_CONCURRENCY}]")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= _MAX_RATE_PER_S:
        raise InvalidArgumentError(
            "--rate", text, f"numbers in (0, {_MAX_RATE_PER_S:g}] per second"
        )
    return value
