"""One completion as the controller sees it: token ids in, committed token ids out.

Text is the API's business: it encodes the prompt, decodes the tokens, looks for stop strings.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeAlias

from arborist.core.logprobs import TokenLogprobs
from arborist.core.sampling import SamplingParams
from arborist.orchestrator.round import Round, RoundTimes
from arborist.orchestrator.session import FinishReason, Session


@dataclass(frozen=True, slots=True)
class SpeculationOptions:
    """What a request says about speculation; None = the server's default.

    Attributes:
        enabled: Whether to draft.
        depth: Levels below the root, in [1, the server's max_depth].
        top_k: Frontier width and children per node, in [1, the server's max_top_k].
        num_draft_tokens: Drafted nodes verified per round, in [1, the server's limit].
        policy: How the tree is made, one of core.policy_settings.POLICY_NAMES.
        adaptive: Whether trees follow the load; None = as the server does, and no when a size
            is said.
    """

    enabled: bool | None = None
    depth: int | None = None
    top_k: int | None = None
    num_draft_tokens: int | None = None
    policy: str | None = None
    adaptive: bool | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One completion to make.

    Attributes:
        prompt_token_ids: At least one id, each in [0, vocab_size).
        max_tokens: Most tokens to generate, >= 1.
        model: Served name; empty = the only one.
        sampling: How tokens are drawn; its seed does not count, `seed` does.
        seed: 64-bit seed; None = the controller draws one and reports it.
        speculation: On or off, and the tree's shape.
        ignore_eos: Do not end at end-of-sequence tokens.
        stop_token_ids: Further tokens that end the output.
        num_logprobs: Most probable tokens listed with every token's raw log-probs, in [0, 20];
            None = no log-probs.
        json_schema: JSON schema that the output must fit, as text; None = free.
        traceparent: W3C trace context of the caller; empty = a new trace.
        client_key: Whose request it is, never a secret itself: what bounds per client count, and
            whose earlier requests it may take computed prompt tokens over from.
    """

    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    model: str = ""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int | None = None
    speculation: SpeculationOptions = field(default_factory=SpeculationOptions)
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    num_logprobs: int | None = None
    json_schema: str | None = None
    traceparent: str = ""
    client_key: str = ""

    def session(self, session_id: str, eos_token_ids: Sequence[int]) -> Session:
        """Returns a fresh session that decodes it.

        Args:
            session_id: Unique in the controller.
            eos_token_ids: The model's own tokens that end an output.
        """
        return Session(
            session_id=session_id,
            prompt=list(self.prompt_token_ids),
            sampling=self.sampling,
            max_tokens=self.max_tokens,
            eos_token_ids=frozenset() if self.ignore_eos else frozenset(eos_token_ids),
            stop_token_ids=frozenset(self.stop_token_ids),
            num_logprobs=self.num_logprobs,
            tenant=self.client_key,
            json_schema=self.json_schema,
        )


@dataclass(frozen=True, slots=True)
class Started:
    """First event: the request was accepted and runs.

    Attributes:
        request_id: Made by the controller, unique in it.
        model: Model that serves it.
        prompt_tokens: Prompt length, in tokens.
        seed: Seed in use; 0 when greedy.
        trace_id: 32 hex digits; empty when not traced.
    """

    request_id: str
    model: str
    prompt_tokens: int
    seed: int
    trace_id: str


@dataclass(frozen=True, slots=True)
class DeliveredRound:
    """What one round delivered.

    Attributes:
        round_index: From 0; −1 for the token the prefill supplied.
        token_ids: Committed ids, cut at end-of-sequence and limit; at least one.
        num_draft_tokens: Drafted nodes verified.
        accepted_count: Drafted tokens accepted, bonus excluded; what was cut counts too.
        depth: Levels drafted below the root; 0 without a draft.
        times: Where the time of the round went.
        logprobs: Raw log-probs, one per token of token_ids; empty unless asked for.
    """

    round_index: int
    token_ids: tuple[int, ...]
    num_draft_tokens: int
    accepted_count: int
    depth: int
    times: RoundTimes
    logprobs: tuple[TokenLogprobs, ...] = ()

    @classmethod
    def of(cls, round_: Round) -> Self:
        """Returns what a client is told of a round."""
        return cls(
            round_index=round_.round_index,
            token_ids=tuple(round_.tokens),
            num_draft_tokens=round_.num_draft_tokens,
            accepted_count=round_.accepted_count,
            depth=round_.depth,
            times=round_.times,
            logprobs=tuple(round_.logprobs),
        )


@dataclass(frozen=True, slots=True)
class SpeculationSummary:
    """What speculation did over all rounds delivered.

    Attributes:
        rounds: Rounds run.
        draft_tokens: Drafted nodes verified.
        accepted_tokens: Drafted tokens accepted.
        tau: Mean over rounds of accepted_count + 1; 0 without rounds.
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
    """Where a request's time went.

    Attributes:
        queue_ms: Wait for admission.
        time_to_first_token_ms: From arrival to the first token, queue included.
        decode_ms: From the first token to the last.
        total_ms: Whole request.
        tokens_per_s: Tokens after the first per second of decode_ms; 0 without any.
    """

    queue_ms: float
    time_to_first_token_ms: float
    decode_ms: float
    total_ms: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Last event.

    Attributes:
        finish_reason: Why the output ended.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens delivered.
        speculation: What speculation did.
        timing: Times of the request.
        cached_prompt_tokens: Tokens of the prompt that needed no computing (prefix reuse).
    """

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    speculation: SpeculationSummary
    timing: Timing
    cached_prompt_tokens: int = 0


GenerationEvent: TypeAlias = Started | DeliveredRound | Summary


class Generation(Protocol):
    """A completion under way: iterate once, then `aclose` (in `finally`, always).

    Yields Started, then one DeliveredRound per round (the prefill's first token has
    round_index −1), then Summary. Raises ArboristError when the request cannot go on; what was
    yielded stands. Decoding runs a few rounds ahead of a slow reader, then waits for it.
    """

    def __aiter__(self) -> AsyncIterator[GenerationEvent]:
        """Returns itself."""
        ...

    async def __anext__(self) -> GenerationEvent:
        """Returns the next event."""
        ...

    async def finish(self, reason: FinishReason, num_tokens: int) -> None:
        """Ends the output early, say at a stop string; the next event is the Summary.

        Args:
            reason: Why, usually FinishReason.STOP.
            num_tokens: Tokens that count as delivered, at most those yielded.
        """
        ...

    def leave(self) -> None:
        """Begins `aclose` without waiting: nothing that cancels its caller can undo it."""
        ...

    async def aclose(self) -> None:
        """Ends the request and frees the workers' state at once; safe to call twice.

        Cancelled while it waits, it goes on all the same.
        """
        ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model that can be asked for.

    Attributes:
        id: Name to put into a request.
        context_length: Longest prompt + output, in tokens: the model's context, or what a target's
            KV holds if that is less.
        vocab_size: Number of token ids.
        eos_token_ids: Tokens that end an output.
        created_s: Unix time the model became ready, in seconds.
        speculation: Whether a draft that fits is available now.
    """

    id: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    created_s: int
    speculation: bool


class Generator(Protocol):
    """What the public API stands on; the controller implements it.

    `generate` returns at once and raises before anything is started: UnavailableError while no
    target is there or the controller stops, ResourceExhaustedError (with retry_after_ms) when
    sessions and queue are full, UnknownModelError, InvalidArgumentError.
    """

    @property
    def ready(self) -> bool:
        """Returns whether a request would find a target now."""
        ...

    def models(self) -> list[ServedModel]:
        """Returns the models served; empty while no target is there."""
        ...

    def generate(self, request: GenerationRequest) -> Generation:
        """Admits a request, or queues it, or refuses it."""
        ...
