"""Loads that are told apart: sessions as a power of two."""

from __future__ import annotations

import math

# Of so many sessions each tells of every round while something is found out; of more, who share
# their forwards, not all do.
_WITNESSES = 4
# A level is left once the sessions' logarithm is so far from it: 10 to 26 sessions stay at 16.
_BAND = 0.75


class LoadLevel:
    """The level of the sessions at present; a few more or fewer do not change it."""

    def __init__(self) -> None:
        """Starts with one session."""
        self.value = 0
        """Sessions as a power of two."""

    @property
    def witnesses(self) -> int:
        """Returns how many sessions' worth of rounds is told of while something is found out."""
        return min(1 << self.value, _WITNESSES)

    def follow(self, num_sessions: int) -> bool:
        """Takes the present number of sessions.

        Args:
            num_sessions: At least 1.
        Returns:
            Whether the level is another one now.
        """
        if self.covers(num_sessions):
            return False
        self.value = round(math.log2(num_sessions))
        return True

    def covers(self, num_sessions: int) -> bool:
        """Returns whether so many sessions are no other level than the present one."""
        return abs(math.log2(num_sessions) - self.value) <= _BAND


def witness_stride(num_sessions: int, *, calm: bool) -> int:
    """Returns which of the sessions' rounds are told of: every so many; 1 = all.

    Args:
        num_sessions: Who share a target.
        calm: Whether nothing is being found out, so that one session's worth of rounds will do.
    """
    stride = max(1, num_sessions // (1 if calm else _WITNESSES))
    # Sessions that share forwards ask in the same order each time: so every one gets its turn.
    while stride > 1 and math.gcd(stride, num_sessions) > 1:
        stride += 1
    return stride
