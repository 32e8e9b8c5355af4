"""What one mode produced for one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from arborist.core.loops import loops
from arborist.orchestrator.round import Round


@dataclass(frozen=True, slots=True)
class Output:
    """One output with its decode-only time.

    Attributes:
        token_ids: Tokens generated, the prefill's first.
        decode_s: From the first token to the last, in seconds.
        rounds: Rounds after the prefill; empty for modes that have none.
    """

    token_ids: list[int]
    decode_s: float
    rounds: list[Round] = field(default_factory=list)

    @property
    def decoded_count(self) -> int:
        """Returns the tokens that decode_s paid for."""
        return len(self.token_ids) - 1

    @property
    def looping(self) -> bool:
        """Returns whether the output loops: the same 8-gram three times (DESIGN §9)."""
        return loops(self.token_ids)


def first_difference(left: Sequence[int], right: Sequence[int]) -> int | None:
    """Returns the first index where two outputs differ, or None if they are equal."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return None if len(left) == len(right) else min(len(left), len(right))
