"""Ctrl-C and SIGTERM for commands that must stop others before they end."""

from __future__ import annotations

import signal
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """The first signal interrupts the main thread, later ones are ignored.

    What follows the first one is a bounded stop, which a second Ctrl-C would only cut off half-way,
    leaving processes behind.
    """

    def __init__(self) -> None:
        """Takes over both signals; from the main thread only."""
        self.take_over()

    def take_over(self) -> None:
        """Takes over again, after a library set handlers of its own."""
        for one in _SIGNALS:
            signal.signal(one, self._interrupt)

    def ignore(self) -> None:
        """Ignores them from now on."""
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_IGN)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.ignore()
        raise KeyboardInterrupt
