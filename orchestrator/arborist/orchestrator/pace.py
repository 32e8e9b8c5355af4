"""How much longer rounds take than their forwards and trips alone would, as seen lately."""

from __future__ import annotations

import math

# Rounds that count: so many of every session, and so many in all when sessions are few.
_ROUNDS_OF_EACH = 8
_FEWEST_ROUNDS = 64
# Rounds of every session, and in all, from which on what was seen is believed.
_BELIEVED_OF_EACH = 3
_FEWEST_BELIEVED = 12
# A round that something else held up counts as so many times the usual one.
_MOST_SURPRISE = 4.0


class Pace:
    """Actual over expected time of one kind of round at about one number of sessions."""

    def __init__(self) -> None:
        """Starts without rounds."""
        self._weight = self._actual_ms = self._expected_ms = 0.0

    def observe(self, actual_ms: float, expected_ms: float, num_sessions: int) -> None:
        """Takes a round of one session.

        Args:
            actual_ms: What it took.
            expected_ms: What its forwards and trips would take undisturbed, over 0.
            num_sessions: Sessions that share the target.
        """
        if self._weight > _FEWEST_BELIEVED:
            actual_ms = min(actual_ms, _MOST_SURPRISE * self.slowdown * expected_ms)
        keep = 1.0 - 1.0 / max(_FEWEST_ROUNDS, _ROUNDS_OF_EACH * num_sessions)
        self._weight = keep * self._weight + 1.0
        self._actual_ms = keep * self._actual_ms + actual_ms
        self._expected_ms = keep * self._expected_ms + expected_ms

    def is_known(self, num_sessions: int) -> bool:
        """Returns whether enough was seen for so many sessions."""
        return self._weight >= max(_FEWEST_BELIEVED, _BELIEVED_OF_EACH * num_sessions)

    @property
    def slowdown(self) -> float:
        """Returns actual over expected time; 1 before the first round."""
        return self._actual_ms / self._expected_ms if self._expected_ms else 1.0


class Paces:
    """The paces of both kinds of round, by sessions as a power of two."""

    def __init__(self) -> None:
        """Knows none."""
        self._of: dict[tuple[bool, int], Pace] = {}

    def observe(
        self, actual_ms: float, expected_ms: float, *, drafted: bool, num_sessions: int
    ) -> None:
        """Takes a round of one session; see `Pace.observe`.

        Args:
            actual_ms: What it took.
            expected_ms: What it would take undisturbed.
            drafted: Whether it had a draft.
            num_sessions: Sessions that share the target.
        """
        pace = self._of.setdefault((drafted, load_bucket(num_sessions)), Pace())
        pace.observe(actual_ms, expected_ms, num_sessions)

    def forget(self, *, drafted: bool, num_sessions: int) -> None:
        """Begins a kind of round anew: what is old shall not weigh on what is tried now."""
        self._of.pop((drafted, load_bucket(num_sessions)), None)

    def is_known(self, *, drafted: bool, num_sessions: int) -> bool:
        """Returns whether a kind of round was seen at about so many sessions."""
        pace = self._of.get((drafted, load_bucket(num_sessions)))
        return pace is not None and pace.is_known(num_sessions)

    def slowdown(self, *, drafted: bool, num_sessions: int) -> float:
        """Returns what is known at about so many sessions, or else nearest to it.

        Of a kind of round never seen, the other kind tells; 1 without any.
        """
        return self._nearest(drafted, num_sessions) or self._nearest(not drafted, num_sessions) or 1

    def _nearest(self, drafted: bool, num_sessions: int) -> float | None:
        at = load_bucket(num_sessions)
        known = [
            (abs(bucket - at), bucket, pace)
            for (kind, bucket), pace in self._of.items()
            if kind == drafted and pace.is_known(2**bucket)
        ]
        return min(known, key=lambda one: one[:2])[2].slowdown if known else None


def load_bucket(num_sessions: int) -> int:
    """Returns the nearest power of two: 12 to 22 sessions are alike."""
    return round(math.log2(num_sessions))
