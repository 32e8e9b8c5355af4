"""Loads that are told apart: sessions as a power of two."""

from __future__ import annotations

import math

# A level is left once the sessions' logarithm is so far from it: 10 to 26 sessions stay at 16.
_BAND = 0.75


class LoadLevel:
    """The level of the sessions at present; a few more or fewer do not change it."""

    def __init__(self) -> None:
        """Starts with one session."""
        self.value = 0

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
