"""What counts as an output that loops (DESIGN §9)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def loops(token_ids: Sequence[int], length: int = 8, times: int = 3) -> bool:
    """Returns whether some run of `length` tokens occurs `times` times, overlaps counted."""
    runs = Counter(
        tuple(token_ids[start : start + length]) for start in range(len(token_ids) - length + 1)
    )
    return bool(runs) and max(runs.values()) >= times
