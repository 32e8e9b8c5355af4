"""How much longer rounds take than their forwards and trips alone would, as seen lately."""

from __future__ import annotations

from collections import deque

# So many rounds count, those of the last few trials among them: sessions share forwards, so that
# few rounds tell little. Of many sessions that is a hundred rounds of each while all is calm.
_MOST_ROUNDS = 96
# Rounds from which on what was seen is believed.
_BELIEVED_ROUNDS = 12
# A round that something else held up counts as so many times the usual one.
_MOST_SURPRISE = 4.0
# The guess that prompts take what their rows say counts as this share of what was seen of them.
_GUESS_SHARE = 0.05


class Pace:
    """Actual over expected time of one kind of round at one level of load.

    Prompts of new sessions share the forwards of some rounds. What they take is told apart from
    what rounds take by least squares: how many there are depends on who comes, not on whether
    sessions draft.
    """

    def __init__(self) -> None:
        """Starts without rounds."""
        # Each (actual, expected, of prompts), in milliseconds, and the sums of their products.
        self._rounds: deque[tuple[float, float, float]] = deque()
        self._ae = self._ap = self._ee = self._ep = self._pp = 0.0

    def observe(self, actual_ms: float, expected_ms: float, prompt_ms: float = 0.0) -> None:
        """Takes a round of one session.

        Args:
            actual_ms: What it took.
            expected_ms: What its forwards and trips would take undisturbed, over 0.
            prompt_ms: What prompts that shared its forwards would take beside, 0 or more.
        """
        if self.is_known:
            usual_ms = self.slowdown * (expected_ms + prompt_ms)
            actual_ms = min(actual_ms, _MOST_SURPRISE * usual_ms)
        self._rounds.append((actual_ms, expected_ms, prompt_ms))
        self._add(1.0, actual_ms, expected_ms, prompt_ms)
        if len(self._rounds) > _MOST_ROUNDS:
            self._add(-1.0, *self._rounds.popleft())

    @property
    def is_known(self) -> bool:
        """Returns whether enough was seen."""
        return len(self._rounds) >= _BELIEVED_ROUNDS

    @property
    def slowdown(self) -> float:
        """Returns actual over expected time without prompts, over 0; 1 before the first round."""
        if not self._rounds:
            return 1.0
        if self._pp <= 0.0:
            return self._ae / self._ee
        # Actual = slowdown · expected + factor · of prompts, the factor being guessed as 1.
        guess = _GUESS_SHARE * self._pp
        pp, ap = self._pp + guess, self._ap + guess
        determinant = self._ee * pp - self._ep * self._ep
        factor = max((self._ee * ap - self._ep * self._ae) / determinant, 0.0)
        slowdown = (self._ae - factor * self._ep) / self._ee
        return slowdown if slowdown > 0.0 else self._ae / self._ee

    def _add(self, sign: float, actual_ms: float, expected_ms: float, prompt_ms: float) -> None:
        self._ae += sign * actual_ms * expected_ms
        self._ap += sign * actual_ms * prompt_ms
        self._ee += sign * expected_ms * expected_ms
        self._ep += sign * expected_ms * prompt_ms
        self._pp += sign * prompt_ms * prompt_ms


class Paces:
    """The paces of both kinds of round, by level of load."""

    def __init__(self) -> None:
        """Knows none."""
        self._of: dict[tuple[bool, int], Pace] = {}

    def at(self, *, drafted: bool, level: int) -> Pace:
        """Returns the pace of a kind of round.

        Args:
            drafted: Whether it has a draft.
            level: Sessions that share the target, as a power of two.
        """
        pace = self._of.get((drafted, level))
        if pace is None:
            pace = self._of[drafted, level] = Pace()
        return pace

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
