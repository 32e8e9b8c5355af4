"""What the answers of a conversation cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arborist.client.completion import RoundEvent


@dataclass(slots=True)
class AnswerStats:
    """Rounds and tokens of one answer, or of several.

    Attributes:
        num_answers: Answers counted, cancelled ones too.
        num_tokens: Tokens that came.
        num_rounds: Rounds after the prefill.
        accepted_tokens: Drafted tokens accepted.
        decoded_tokens: Tokens after each answer's first.
        decode_s: From each answer's first token to its last, in seconds.
    """

    num_answers: int = 0
    num_tokens: int = 0
    num_rounds: int = 0
    accepted_tokens: int = 0
    decoded_tokens: int = 0
    decode_s: float = 0.0

    @staticmethod
    def of(rounds: Sequence[RoundEvent], came_s: Sequence[float]) -> AnswerStats:
        """Returns the numbers of one answer.

        Args:
            rounds: What came.
            came_s: When each came, in seconds.
        """
        counts = [len(one.token_ids) for one in rounds]
        decoding = [one for one in rounds if one.round_index >= 0]
        return AnswerStats(
            1,
            sum(counts),
            len(decoding),
            sum(one.accepted_count for one in decoding),
            sum(counts[1:]),
            came_s[-1] - came_s[0] if came_s else 0.0,
        )

    def add(self, other: AnswerStats) -> None:
        """Adds the numbers of more answers."""
        self.num_answers += other.num_answers
        self.num_tokens += other.num_tokens
        self.num_rounds += other.num_rounds
        self.accepted_tokens += other.accepted_tokens
        self.decoded_tokens += other.decoded_tokens
        self.decode_s += other.decode_s

    def line(self) -> str:
        """Returns them in one line."""
        tau = 1 + self.accepted_tokens / self.num_rounds if self.num_rounds else 0.0
        speed = self.decoded_tokens / self.decode_s if self.decode_s > 0 else 0.0
        return (
            f"{self.num_tokens} tokens, {self.num_rounds} rounds, tau={tau:.2f}, "
            f"tokens_per_s={speed:.1f}"
        )
