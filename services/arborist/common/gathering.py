"""How long a forward waits for sessions that were answered a moment ago.

A forward costs a fixed time and a time per token. Started the moment the last one ends, it takes
only the sessions that queued meanwhile; those just answered miss it, and from then on two groups
take turns, each paying the fixed time. A short wait brings them together again. Sessions that do
something else first (draft, say) do not come back in time: they are not waited for, and tried again
ever more rarely.
"""

from __future__ import annotations

from collections.abc import Iterable

from arborist.core.engine import SessionKey

# What an old forward's weight is multiplied by with every new one: half of it is lost in 34.
_DECAY_PER_FORWARD = 0.98
# Forwards that must have been seen before any waits.
_MIN_FORWARDS = 16
# Most forwards that a session is not waited for after it did not come.
_MAX_SKIPPED_FORWARDS = 63


class ForwardCost:
    """Learns the fixed time of a forward: a line through times over tokens, newest first."""

    def __init__(self) -> None:
        self._count = 0
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Takes one forward."""
        self._count += 1
        for name, value in (
            ("_weight", 1.0),
            ("_x", num_tokens),
            ("_y", seconds),
            ("_xx", num_tokens * num_tokens),
            ("_xy", num_tokens * seconds),
        ):
            setattr(self, name, _DECAY_PER_FORWARD * getattr(self, name) + value)

    @property
    def fixed_s(self) -> float:
        """Returns the time of a forward without tokens, in seconds; 0 = not known yet."""
        if self._count < _MIN_FORWARDS:
            return 0.0
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        spread = self._xx / self._weight - mean_x * mean_x
        if spread < 0.25:
            # Always the same size: whoever is waited for is there already.
            return mean_y
        slope = max((self._xy / self._weight - mean_x * mean_y) / spread, 0.0)
        return max(mean_y - slope * mean_x, 0.0)


class Gathering:
    """Whom the next forward waits for, and until when; the compute thread owns it."""

    def __init__(self, share: float) -> None:
        """Begins without knowing anything, and so without waiting.

        Args:
            share: Longest wait, as a share of a forward's fixed time; 0 = never.
        """
        self._share = share
        self._cost = ForwardCost()
        self._awaited: set[SessionKey] = set()
        # Sessions of the last forward that are not waited for.
        self._others: set[SessionKey] = set()
        self._until_s = 0.0
        # Forwards a session is not waited for, and how many it was the last time.
        self._skips: dict[SessionKey, tuple[int, int]] = {}

    def ran(self, sessions: Iterable[SessionKey], num_tokens: int, seconds: float) -> None:
        """Takes a forward whose answers are about to leave.

        Args:
            sessions: Who was in it.
            num_tokens: Its tokens.
            seconds: Its time.
        """
        self._cost.observe(num_tokens, seconds)
        self._give_up()
        answered = set(sessions)
        self._awaited = {one for one in answered if self._is_due(one)}
        self._others = answered - self._awaited

    def answered(self, now_s: float) -> None:
        """Starts the wait: the answers have left."""
        self._until_s = now_s + self._share * self._cost.fixed_s

    def came(self, session: SessionKey, now_s: float) -> None:
        """Takes that a session has its next command queued.

        Args:
            session: Whose; one that was not waited for and comes back in time after all, since it
                stopped drafting, say, is waited for again.
            now_s: When it was seen.
        """
        in_time = session in self._others and now_s <= self._until_s
        if session in self._awaited or in_time:
            self._awaited.discard(session)
            self._skips.pop(session, None)

    def forget(self, session: SessionKey) -> None:
        """Drops a session that was released."""
        self._awaited.discard(session)
        self._others.discard(session)
        self._skips.pop(session, None)

    def patience_s(self, now_s: float) -> float:
        """Returns how much longer the next forward is to wait, in seconds; 0 = it may begin."""
        return max(self._until_s - now_s, 0.0) if self._awaited else 0.0

    def _is_due(self, session: SessionKey) -> bool:
        left, skipped = self._skips.get(session, (0, 0))
        if left:
            self._skips[session] = (left - 1, skipped)
        return not left

    def _give_up(self) -> None:
        """Waits less often for those who did not come."""
        for session in self._awaited:
            skips = min(2 * self._skips.get(session, (0, 0))[1] + 1, _MAX_SKIPPED_FORWARDS)
            self._skips[session] = (skips, skips)
