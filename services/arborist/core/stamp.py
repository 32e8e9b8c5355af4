"""Order of a session's commands, so that retries are safe and late ones harmless."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from arborist.core.errors import StaleStampError

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, order=True)
class Stamp:
    """Position of a command, compared lexicographically.

    Attributes:
        epoch: Incarnation of the session at the worker, from 1.
        tree_id: 0 during prefill, round_index + 1 in a round.
        step: Command number inside the prefill or round, from 0.
    """

    epoch: int
    tree_id: int
    step: int


class StampGuard(Generic[ResultT]):
    """Remembers the last command of a session and its result.

    `admit` then `settle` bracket a command. Not thread-safe: one event loop owns it.
    """

    def __init__(self, epoch: int) -> None:
        self._last = Stamp(epoch, -1, -1)
        self._result: ResultT | None = None

    @property
    def last(self) -> Stamp:
        """Returns the newest stamp admitted."""
        return self._last

    def admit(self, stamp: Stamp) -> ResultT | None:
        """Decides whether a command is new, a repetition, or stale.

        Args:
            stamp: Stamp of the command.
        Returns:
            None if the command is new and must run; the remembered result if it repeats the
            last command.
        Raises:
            StaleStampError: The stamp is older than the last one, or of another epoch, or
                repeats a command that failed.
        """
        if stamp == self._last and self._result is not None:
            return self._result
        if stamp <= self._last or stamp.epoch != self._last.epoch:
            raise StaleStampError(
                "stamp is older than the session's last command",
                metadata={"stamp": _text(stamp), "last": _text(self._last)},
            )
        self._last, self._result = stamp, None
        return None

    def settle(self, stamp: Stamp, result: ResultT) -> None:
        """Remembers the result of the newest command; a superseded one is ignored."""
        if stamp == self._last:
            self._result = result


def _text(stamp: Stamp) -> str:
    return f"{stamp.epoch}/{stamp.tree_id}/{stamp.step}"
