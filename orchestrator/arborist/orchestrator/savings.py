"""Time that may be lost to tries."""

from __future__ import annotations

# Share of the time that passes; trials and probes have one each.
_LOSS_SHARE = 0.005
_MOST_SAVED_MS = 4000.0


class Savings:
    """Time that may be lost to tries, saved up as time goes by."""

    def __init__(self, first_ms: float = 0.0) -> None:
        """Starts with a loan that need not be paid back.

        Args:
            first_ms: Milliseconds.
        """
        self._saved_ms = first_ms

    def add(self, passed_ms: float) -> None:
        """Saves a share of time that passed."""
        self._saved_ms = min(self._saved_ms + _LOSS_SHARE * passed_ms, _MOST_SAVED_MS)

    def spend(self, lost_ms: float) -> bool:
        """Takes what a try may lose; returns False, and takes nothing, if so much is not there.

        No try is dearer than all that can be saved up: however much one has cost, there is another.
        """
        lost_ms = min(lost_ms, _MOST_SAVED_MS)
        if lost_ms > self._saved_ms:
            return False
        self._saved_ms -= lost_ms
        return True

    def owe(self, lost_ms: float) -> None:
        """Takes what a try has lost beyond what was spent; it is saved up before the next one."""
        self._saved_ms = max(self._saved_ms - lost_ms, -_MOST_SAVED_MS)
