"""Raw log-probs of committed tokens: what the model itself says, before any processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MAX_LOGPROBS = 20
"""Most tokens listed per committed token, its own not counted."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How probable one committed token was.

    Attributes:
        token_id: The token.
        logprob: Its natural-log probability; fp32 precision.
        top: The most probable tokens and their log-probs, best first; the token may be among them.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def token_logprobs(logits: Tensor, tokens: Sequence[int], num_top: int) -> list[TokenLogprobs]:
    """Returns the raw log-probs of committed tokens.

    Args:
        logits: float, shape (len(tokens), vocab); raw logits each token was drawn from.
        tokens: Token ids.
        num_top: Most probable tokens to list, in [0, 20]; at most the vocabulary.
    """
    # Rounding must not make a probability exceed 1.
    scores = logits.float().log_softmax(dim=-1).clamp_(max=0.0)  # [R, V]
    rows = range(len(tokens))
    own = scores[list(rows), list(tokens)].tolist()
    best = scores.topk(min(num_top, scores.shape[-1]), dim=-1)  # [R, n]
    values, ids = best.values.tolist(), best.indices.tolist()
    return [
        TokenLogprobs(tokens[row], own[row], tuple(zip(ids[row], values[row], strict=True)))
        for row in rows
    ]
