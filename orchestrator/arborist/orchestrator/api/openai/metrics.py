"""What an answer says about its making: speculation and times, in vLLM's shape."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, Field

from arborist.orchestrator.api.openai.absent import absent
from arborist.orchestrator.api.openai.choice_output import ChoiceOutput


class SpeculativeDecoding(BaseModel):
    """Sums over the choices of an answer. A tree counts all of its nodes as drafted.

    Attributes:
        mean_acceptance_length: tau: mean over rounds of accepted + 1.
        draft_acceptance_rate: Accepted of drafted tokens; 0 when nothing was drafted.
        acceptance_histogram: Rounds by accepted tokens, from 0 to num_spec_tokens.
        num_accepted_draft_tokens: Drafted tokens accepted.
        num_draft_tokens: Drafted nodes verified.
        num_spec_steps: Rounds.
        num_spec_tokens: Levels of the deepest tree: most tokens a round can accept.
    """

    mean_acceptance_length: float
    draft_acceptance_rate: float
    acceptance_histogram: list[int]
    num_accepted_draft_tokens: int
    num_draft_tokens: int
    num_spec_steps: int
    num_spec_tokens: int


class Metrics(BaseModel):
    """The root's `metrics`; times are there only when there is one choice."""

    queue_time_ms: float | None = Field(default=None, exclude_if=absent)
    time_to_first_token_ms: float | None = Field(default=None, exclude_if=absent)
    generation_time_ms: float | None = Field(default=None, exclude_if=absent)
    mean_itl_ms: float | None = Field(default=None, exclude_if=absent)
    tokens_per_second: float | None = Field(default=None, exclude_if=absent)
    speculative_decoding: SpeculativeDecoding | None = Field(default=None, exclude_if=absent)


def metrics_of(outputs: Sequence[ChoiceOutput]) -> Metrics:
    """Returns what is to say about finished outputs; no speculation where there was none."""
    speculation = _speculation(outputs)
    if len(outputs) != 1:
        return Metrics(speculative_decoding=speculation)
    summary = outputs[0].summary
    timing, later_tokens = summary.timing, summary.completion_tokens - 1
    return Metrics(
        queue_time_ms=timing.queue_ms,
        time_to_first_token_ms=timing.time_to_first_token_ms,
        generation_time_ms=timing.decode_ms,
        mean_itl_ms=timing.decode_ms / later_tokens if later_tokens > 0 else 0.0,
        tokens_per_second=timing.tokens_per_s,
        speculative_decoding=speculation,
    )


def _speculation(outputs: Sequence[ChoiceOutput]) -> SpeculativeDecoding | None:
    parts = [one.summary.speculation for one in outputs]
    if not any(one.draft_tokens or one.rounds_without_draft for one in parts):
        return None
    depth = max(one.max_depth for one in outputs)
    length = max(depth + 1, *(len(one.acceptance_histogram) for one in parts))
    histogram = [0] * length
    for part in parts:
        for accepted, rounds in enumerate(part.acceptance_histogram):
            histogram[accepted] += rounds
    rounds = sum(one.rounds for one in parts)
    drafted = sum(one.draft_tokens for one in parts)
    accepted = sum(one.accepted_tokens for one in parts)
    return SpeculativeDecoding(
        mean_acceptance_length=1 + accepted / rounds if rounds else 0.0,
        draft_acceptance_rate=accepted / drafted if drafted else 0.0,
        acceptance_histogram=histogram,
        num_accepted_draft_tokens=accepted,
        num_draft_tokens=drafted,
        num_spec_steps=rounds,
        num_spec_tokens=length - 1,
    )
