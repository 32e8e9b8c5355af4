"""The line that a controller logs every few seconds: how fast, how full, how well drafted."""

from __future__ import annotations

from collections import Counter


class StatusLine:
    """Collects rounds between two lines; fed and read by one event loop."""

    def __init__(self, now_s: float) -> None:
        """Starts a period at `now_s`, in seconds of any monotonic clock."""
        self._since_s = now_s
        self._was_idle = True
        self._clear()

    def observe_round(self, num_tokens: int, accepted_count: int, *, drafted: bool) -> None:
        """Takes one delivered round, or the prefill's token (not drafted, nothing accepted)."""
        self._num_tokens += num_tokens
        if drafted:
            self._accepted[accepted_count] += 1

    def next(self, now_s: float, num_running: int, num_waiting: int) -> str | None:
        """Ends the period.

        Args:
            now_s: Same clock as before, in seconds.
            num_running: Requests being decoded.
            num_waiting: Requests waiting.

        Returns:
            The line; None in every idle period after the first one.
        """
        seconds = max(now_s - self._since_s, 1e-9)
        idle = not (self._num_tokens or num_running or num_waiting)
        line = None
        if not (idle and self._was_idle):
            line = (
                f"throughput {self._num_tokens / seconds:.1f} tokens/s, "
                f"running {num_running}, waiting {num_waiting}{self._drafting()}"
            )
        self._since_s, self._was_idle = now_s, idle
        self._clear()
        return line

    def _drafting(self) -> str:
        num_rounds = self._accepted.total()
        if num_rounds == 0:
            return ""
        accepted = sum(count * rounds for count, rounds in self._accepted.items())
        rates = []
        for position in range(max(self._accepted)):
            reached = sum(rounds for count, rounds in self._accepted.items() if count > position)
            rates.append(f"{reached / num_rounds:.2f}")
        per_position = f", accepted per position {' '.join(rates)}" if rates else ""
        return f", tau {1 + accepted / num_rounds:.2f}{per_position}"

    def _clear(self) -> None:
        self._num_tokens = 0
        self._accepted: Counter[int] = Counter()
