"""How long a command may take before its worker counts as lost (DESIGN §5)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

_WINDOW = 31
_REFRESH = 8


@dataclass(frozen=True, slots=True)
class DeadlinePolicy:
    """Floors and factors.

    Attributes:
        draft_floor_s: Least time a draft command gets.
        target_floor_s: Least time a Verify gets.
        prefill_s_per_token: Time per prompt token, on top of the target's floor.
        open_s: Time to open a session at a target.
        schema_open_s: The same where a schema is to be compiled first, perhaps behind others.
        draft_open_s: Time to open a session at a draft; nothing is lost by going on without one.
        draft_factor: Times the running median of the row bucket.
        target_factor: Times the running median of the row bucket.
    """

    draft_floor_s: float = 0.25
    target_floor_s: float = 1.0
    prefill_s_per_token: float = 0.05
    open_s: float = 5.0
    schema_open_s: float = 40.0
    draft_open_s: float = 1.0
    draft_factor: float = 4.0
    target_factor: float = 8.0


class Deadlines:
    """Running medians of command times by row bucket (powers of two), one per worker kind."""

    def __init__(self, policy: DeadlinePolicy) -> None:
        self._policy = policy
        self._seen: dict[tuple[str, int], deque[float]] = {}
        self._count: dict[tuple[str, int], int] = {}
        self._median: dict[tuple[str, int], float] = {}

    def open_s(self, *, compiles: bool = False) -> float:
        """Returns the deadline of Open at a target, in seconds.

        Args:
            compiles: Whether the target compiles a schema first.
        """
        return self._policy.schema_open_s if compiles else self._policy.open_s

    @property
    def draft_open_s(self) -> float:
        """Returns the deadline of Open at a draft, in seconds."""
        return self._policy.draft_open_s

    def draft_s(self, rows: int) -> float:
        """Returns the deadline of Extend or Expand, in seconds."""
        return max(self._policy.draft_floor_s, self._policy.draft_factor * self._of("draft", rows))

    def draft_tree_s(self, rows: int, top_k: int, depth: int) -> float:
        """Returns the deadline of an Extend with the ExpandTree behind it, in seconds.

        One floor for both, once it is known how long their levels take; until then one a level.

        Args:
            rows: Pairs of the Extend.
            top_k: Rows of every other level.
            depth: Levels, level 1 included.
        """
        floor_s, factor = self._policy.draft_floor_s, self._policy.draft_factor
        extend_s, expand_s = (factor * self._of("draft", one) or floor_s for one in (rows, top_k))
        return max(floor_s, extend_s + (depth - 1) * expand_s)

    def target_s(self, rows: int) -> float:
        """Returns the deadline of Verify, in seconds."""
        running = self._policy.target_factor * self._of("target", rows)
        return max(self._policy.target_floor_s, running)

    def prefill_s(self, tokens: int) -> float:
        """Returns the deadline of a prefill, a feature read or a bulk extend, in seconds."""
        return self._policy.target_floor_s + self._policy.prefill_s_per_token * tokens

    def observe(self, kind: str, rows: int, elapsed_s: float) -> None:
        """Adds one completed command to the running median of its bucket."""
        key = (kind, rows.bit_length())
        window = self._seen.setdefault(key, deque(maxlen=_WINDOW))
        window.append(elapsed_s)
        self._count[key] = self._count.get(key, 0) + 1
        # The median moves slowly: renewing it now and then keeps it off the round's cost.
        if self._count[key] < _REFRESH or self._count[key] % _REFRESH == 0:
            self._median[key] = median(window)

    def _of(self, kind: str, rows: int) -> float:
        return self._median.get((kind, rows.bit_length()), 0.0)
