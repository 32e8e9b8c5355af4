"""What became of one request, as its client saw it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal["completed", "cancelled", "unfinished", "failed"]


@dataclass(slots=True)
class RequestRecord:
    """One request's times, in seconds of one clock.

    Attributes:
        due_s: When it was to be sent: a client that comes late must not make the server look
            quick.
        outcome: unfinished = under way when the run ended.
        reason: Of the error table; empty unless failed.
        end_s: When it was over.
        message_s: When each message with tokens came.
        message_tokens: Tokens of each message.
        num_rounds: Rounds, the prefill's token excluded.
        accepted_tokens: Drafted tokens accepted.
        draft_tokens: Drafted nodes verified.
    """

    due_s: float
    outcome: Outcome = "unfinished"
    reason: str = ""
    end_s: float = 0.0
    message_s: list[float] = field(default_factory=list)
    message_tokens: list[int] = field(default_factory=list)
    num_rounds: int = 0
    accepted_tokens: int = 0
    draft_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Returns the tokens that came."""
        return sum(self.message_tokens)

    @property
    def first_token_s(self) -> float | None:
        """Returns the time to the first token; None = none came."""
        return self.message_s[0] - self.due_s if self.message_s else None

    @property
    def mean_inter_token_s(self) -> float | None:
        """Returns the time from the first token to the last, per token after the first."""
        later = self.num_tokens - (self.message_tokens[0] if self.message_tokens else 0)
        return (self.message_s[-1] - self.message_s[0]) / later if later else None
