"""The committed log of one session: the only truth; trees, features and KV are caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from arborist.core.sampling import SamplingParams


class FinishReason(Enum):
    """Why an output ended."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class Session:
    """One sequence from open to release.

    Attributes:
        session_id: Made by the controller, unique in it.
        prompt: Prompt tokens, at least one.
        sampling: How tokens are drawn.
        max_tokens: Most tokens to commit after the prompt.
        eos_token_ids: The model's own tokens that end the output; empty to ignore them.
        stop_token_ids: Further tokens that end it.
        num_logprobs: Most probable tokens listed with every token's log-probs; None = no log-probs.
        tenant: Whose it is: what was computed is shared with the tenant's other sessions; None =
            with none.
        json_schema: JSON schema that the output must fit, as text; None = free.
        output: Committed tokens after the prompt.
        finish_reason: Set once, when nothing more may be committed.
    """

    session_id: str
    prompt: list[int]
    sampling: SamplingParams
    max_tokens: int
    eos_token_ids: frozenset[int]
    stop_token_ids: frozenset[int] = frozenset()
    num_logprobs: int | None = None
    tenant: str | None = None
    json_schema: str | None = None
    output: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def committed_length(self) -> int:
        """Returns prompt + output, in tokens; the root is the last one."""
        return len(self.prompt) + len(self.output)

    @property
    def max_length(self) -> int:
        """Returns the longest this session can get, in tokens."""
        return len(self.prompt) + self.max_tokens

    @property
    def root(self) -> int:
        """Returns the last committed token."""
        return self.output[-1]

    def committed(self, begin: int, end: int) -> list[int]:
        """Returns committed tokens at positions [begin, end)."""
        return (self.prompt + self.output)[begin:end]

    def commit(self, tokens: Sequence[int]) -> list[int]:
        """Appends what a round produced, up to the end of the output.

        Args:
            tokens: Accepted tokens and the bonus, in order.
        Returns:
            The tokens that count: nothing after a token that ends the output, or after the limit
            (DESIGN §2.5).
        """
        kept: list[int] = []
        for token in tokens:
            kept.append(token)
            if token in self.eos_token_ids:
                self.finish_reason = FinishReason.EOS
                break
            if token in self.stop_token_ids:
                self.finish_reason = FinishReason.STOP
                break
            if len(self.output) + len(kept) >= self.max_tokens:
                self.finish_reason = FinishReason.LENGTH
                break
        self.output.extend(kept)
        return kept
