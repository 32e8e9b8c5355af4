"""How much longer rounds take than their forwards and trips alone would, as seen lately."""

from __future__ import annotations

from collections import deque

# Rounds that count: so many of every session, and so many in all when sessions are few. Those of
# the last few trials are among them: sessions share forwards, so that few rounds tell little.
_ROUNDS_OF_EACH = 24
_FEWEST_ROUNDS = 64
# Rounds of every session, and in all, from which on what was seen is believed.
_BELIEVED_OF_EACH = 3
_FEWEST_BELIEVED = 12
# A round that something else held up counts as so many times the usual one.
_MOST_SURPRISE = 4.0


class Pace:
    """Actual over expected time of one kind of round at one level of load."""

    def __init__(self, level: int) -> None:
        """Starts without rounds.

        Args:
            level: Sessions as a power of two.
        """
        sessions = 1 << level
        self._most = max(_FEWEST_ROUNDS, _ROUNDS_OF_EACH * sessions)
        self._believed = max(_FEWEST_BELIEVED, _BELIEVED_OF_EACH * sessions)
        self._rounds: deque[tuple[float, float]] = deque()  # (actual, expected), in ms.
        self._actual_ms = self._expected_ms = 0.0

    def observe(self, actual_ms: float, expected_ms: float) -> None:
        """Takes a round of one session.

        Args:
            actual_ms: What it took.
            expected_ms: What its forwards and trips would take undisturbed, over 0.
        """
        if self.is_known:
            actual_ms = min(actual_ms, _MOST_SURPRISE * self.slowdown * expected_ms)
        self._rounds.append((actual_ms, expected_ms))
        self._actual_ms += actual_ms
        self._expected_ms += expected_ms
        if len(self._rounds) > self._most:
            actual_ms, expected_ms = self._rounds.popleft()
            self._actual_ms -= actual_ms
            self._expected_ms -= expected_ms

    @property
    def is_known(self) -> bool:
        """Returns whether enough was seen."""
        return len(self._rounds) >= self._believed

    @property
    def slowdown(self) -> float:
        """Returns actual over expected time; 1 before the first round."""
        return self._actual_ms / self._expected_ms if self._rounds else 1.0


class Paces:
    """The paces of both kinds of round, by level of load."""

    def __init__(self) -> None:
        """Knows none."""
        self._of: dict[tuple[bool, int], Pace] = {}

    def observe(self, actual_ms: float, expected_ms: float, *, drafted: bool, level: int) -> None:
        """Takes a round of one session; see `Pace.observe`.

        Args:
            actual_ms: What it took.
            expected_ms: What it would take undisturbed.
            drafted: Whether it had a draft.
            level: Sessions that share the target, as a power of two.
        """
        pace = self._of.get((drafted, level))
        if pace is None:
            pace = self._of[drafted, level] = Pace(level)
        pace.observe(actual_ms, expected_ms)

    def is_known(self, *, drafted: bool, level: int) -> bool:
        """Returns whether a kind of round was seen at a level."""
        pace = self._of.get((drafted, level))
        return pace is not None and pace.is_known

    def slowdown(self, *, drafted: bool, level: int) -> float:
        """Returns what is known at a level, or else nearest to it.

        Of a kind of round never seen, the other kind tells; 1 without any.
        """
        return self._nearest(drafted, level) or self._nearest(not drafted, level) or 1.0

    def _nearest(self, drafted: bool, level: int) -> float | None:
        pace = self._of.get((drafted, level))
        if pace is not None and pace.is_known:
            return pace.slowdown
        known = [
            (abs(other - level), other, pace)
            for (kind, other), pace in self._of.items()
            if kind == drafted and pace.is_known
        ]
        return min(known, key=lambda one: one[:2])[2].slowdown if known else None
