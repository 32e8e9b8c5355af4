"""What a generation has delivered so far, and the summary at its end."""

from __future__ import annotations

from arborist.common.serving_metrics import RoundSample
from arborist.orchestrator.generation import SpeculationSummary, Summary, Timing
from arborist.orchestrator.round import Round
from arborist.orchestrator.session import FinishReason


class GenerationAccount:
    """Counts delivered rounds of one request.

    Attributes:
        arrived_ns: Unix time of the request's arrival.
        admitted_ns: Unix time decoding began.
        completion_tokens: Tokens delivered.
        rounds: Rounds delivered, prefill excluded.
        first_token_ns: Unix time the first token was committed; 0 before.
        last_token_ns: Unix time the last delivered token was committed; 0 before.
    """

    def __init__(self, arrived_ns: int, prompt_tokens: int, speculates: bool) -> None:
        """Opens the account.

        Args:
            arrived_ns: Unix time of the request's arrival.
            prompt_tokens: Prompt length.
            speculates: Whether the request is to be drafted for.
        """
        self.arrived_ns = arrived_ns
        self._prompt_tokens = prompt_tokens
        self._speculates = speculates
        self._draft_tokens = 0
        self._accepted_tokens = 0
        self._histogram: list[int] = []
        self._rounds_without_draft = 0
        self._cached_prompt_tokens = 0
        self.admitted_ns = arrived_ns
        self.completion_tokens = 0
        self.rounds = 0
        self.first_token_ns = 0
        self.last_token_ns = 0

    def add(self, round_: Round) -> None:
        """Takes a round that is delivered now."""
        self.completion_tokens += len(round_.tokens)
        self.last_token_ns = round_.end_ns
        if round_.round_index < 0:
            self.first_token_ns = round_.end_ns
            self._cached_prompt_tokens = round_.num_reused
            return
        self.rounds += 1
        self._draft_tokens += round_.num_draft_tokens
        self._accepted_tokens += round_.accepted_count
        missing = round_.accepted_count + 1 - len(self._histogram)
        self._histogram.extend([0] * missing)
        self._histogram[round_.accepted_count] += 1
        if self._speculates and not round_.speculated:
            self._rounds_without_draft += 1

    def summary(self, reason: FinishReason, now_ns: int) -> Summary:
        """Returns the last event."""
        decode_ms = (self.last_token_ns - self.first_token_ns) / 1e6
        later_tokens = max(self.completion_tokens - 1, 0)
        return Summary(
            finish_reason=reason,
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=self._cached_prompt_tokens,
            completion_tokens=self.completion_tokens,
            speculation=SpeculationSummary(
                rounds=self.rounds,
                draft_tokens=self._draft_tokens,
                accepted_tokens=self._accepted_tokens,
                tau=self._accepted_tokens / self.rounds + 1 if self.rounds else 0.0,
                acceptance_histogram=tuple(self._histogram),
                rounds_without_draft=self._rounds_without_draft,
            ),
            timing=Timing(
                queue_ms=(self.admitted_ns - self.arrived_ns) / 1e6,
                time_to_first_token_ms=max(self.first_token_ns - self.arrived_ns, 0) / 1e6,
                decode_ms=decode_ms,
                total_ms=(now_ns - self.arrived_ns) / 1e6,
                tokens_per_s=later_tokens / decode_ms * 1e3 if decode_ms > 0 else 0.0,
            ),
        )


def round_sample(round_: Round) -> RoundSample:
    """Returns what the metrics want to know about a round."""
    times = round_.times
    return RoundSample(
        num_tokens=len(round_.tokens),
        num_draft_tokens=round_.num_draft_tokens,
        accepted_count=round_.accepted_count,
        drafted=round_.speculated,
        draft_s=times.draft_compute_ms / 1e3,
        verify_s=times.verify_compute_ms / 1e3,
        transport_s=times.transport_ms / 1e3,
        controller_s=times.controller_ms / 1e3,
        total_s=times.total_ms / 1e3,
    )
