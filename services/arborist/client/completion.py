"""What a client gets: rounds as they are committed, and a summary at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

FinishReason: TypeAlias = Literal["eos", "stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Started:
    """What the server decided.

    Attributes:
        request_id: Identity of the request, made by the server.
        model: Model that serves it.
        prompt_tokens: Prompt length, in tokens.
        seed: Seed in use, 64 bits; 0 when greedy.
        trace_id: Trace of the request, 32 hex digits; empty when not traced.
    """

    request_id: str
    model: str
    prompt_tokens: int
    seed: int
    trace_id: str


@dataclass(frozen=True, slots=True)
class RoundTimes:
    """Where a round's wall time went, all in milliseconds."""

    draft_compute_ms: float
    verify_compute_ms: float
    transport_ms: float
    controller_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token and its natural-log probability."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class OutputLogprobs:
    """How probable an output token was to the model itself, before bias, penalties and sampling.

    Attributes:
        logprob: Natural-log probability of the token.
        top: The most probable tokens, best first, as many as asked for; it may be among them.
    """

    logprob: float
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class RoundEvent:
    """What one round delivered.

    Attributes:
        round_index: From 0; −1 for the token the prefill supplied.
        token_ids: Committed tokens.
        text: Text now certain; may lag behind the tokens, never behind the last round.
        num_draft_tokens: Drafted nodes verified.
        accepted_count: Drafted tokens accepted, bonus excluded.
        depth: Levels drafted below the root.
        times: Where the time of the round went.
        logprobs: One per token of token_ids; empty unless asked for.
    """

    round_index: int
    token_ids: tuple[int, ...]
    text: str
    num_draft_tokens: int
    accepted_count: int
    depth: int
    times: RoundTimes
    logprobs: tuple[OutputLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class SpeculationSummary:
    """What speculation did over all rounds.

    Attributes:
        rounds: Rounds run.
        draft_tokens: Drafted nodes verified.
        accepted_tokens: Drafted tokens accepted.
        tau: Mean over rounds of accepted + 1; 0 without rounds.
        acceptance_histogram: Rounds by accepted_count; index = accepted_count.
        rounds_without_draft: Rounds without a draft although speculation was on.
    """

    rounds: int
    draft_tokens: int
    accepted_tokens: int
    tau: float
    acceptance_histogram: tuple[int, ...]
    rounds_without_draft: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a request's time went, as the server saw it.

    Attributes:
        time_to_first_token_ms: Until the first token.
        decode_ms: From the first token to the last.
        total_ms: Whole request.
        tokens_per_s: Tokens after the first per second of decode_ms.
    """

    time_to_first_token_ms: float
    decode_ms: float
    total_ms: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Summary:
    """How an output ended.

    Attributes:
        finish_reason: Why.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens delivered.
        speculation: What speculation did.
        timing: Times of the request.
        cached_prompt_tokens: Tokens of the prompt that the server had from earlier requests.
    """

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    speculation: SpeculationSummary
    timing: Timing
    cached_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole output.

    Attributes:
        started: What the server decided.
        text: Text, without the stop string that ended it.
        token_ids: Tokens, up to the one that completed a stop string.
        rounds: What each round delivered.
        summary: How it ended.
    """

    started: Started
    text: str
    token_ids: tuple[int, ...]
    rounds: tuple[RoundEvent, ...]
    summary: Summary

    @property
    def logprobs(self) -> tuple[OutputLogprobs, ...]:
        """Returns the log-probs of all tokens; empty unless asked for."""
        return tuple(one for round_ in self.rounds for one in round_.logprobs)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One model a server has.

    Attributes:
        id: Name to ask for.
        context_length: Longest prompt + output, in tokens.
        vocab_size: Number of token ids.
        created_s: Unix time the model became ready, in seconds.
        speculation: Whether a draft is available now.
    """

    id: str
    context_length: int
    vocab_size: int
    created_s: int
    speculation: bool
