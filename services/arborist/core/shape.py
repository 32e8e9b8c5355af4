"""The three numbers that bound a draft tree, and their limits (DESIGN §1)."""

from __future__ import annotations

from dataclasses import dataclass

from arborist.core.errors import InvalidArgumentError

MAX_DEPTH = 16
MAX_TOP_K = 32
MAX_NUM_DRAFT_TOKENS = 256


@dataclass(frozen=True, slots=True)
class TreeShape:
    """How large a round's tree may be.

    Attributes:
        depth: Levels below the root, in [1, 16].
        top_k: Frontier width and children per node, in [1, 32].
        num_draft_tokens: Drafted nodes kept by rerank (the paper's m, root excluded), in [1, 256].
    """

    depth: int = 6
    top_k: int = 10
    num_draft_tokens: int = 60

    def __post_init__(self) -> None:
        _require_range("speculation.depth", self.depth, MAX_DEPTH)
        _require_range("speculation.top_k", self.top_k, MAX_TOP_K)
        _require_range("speculation.num_draft_tokens", self.num_draft_tokens, MAX_NUM_DRAFT_TOKENS)

    @property
    def max_pool_size(self) -> int:
        """Returns the most candidates a round scores: k + (depth − 1)·k²."""
        return self.top_k + (self.depth - 1) * self.top_k**2


def _require_range(field: str, value: int, maximum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
        raise InvalidArgumentError(field, value, f"an integer in [1, {maximum}]")
