"""A model in this process: the same decode loop, validator and text as a server, without RPC."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Self, cast

from arborist.client.completion import Completion, RoundEvent
from arborist.client.progress import Progress
from arborist.common.config import ArboristConfig
from arborist.core.engine import DraftEngine, TargetEngine
from arborist.core.errors import InvalidArgumentError
from arborist.core.ngram import NgramPolicy
from arborist.core.policies import Policy
from arborist.core.policy import TreePolicy
from arborist.orchestrator.api.completion import stream_completion
from arborist.orchestrator.api.generation_wire import write_event
from arborist.orchestrator.api.incoming import IncomingRequest
from arborist.orchestrator.api.tokenizer import Tokenizer, load_tokenizer
from arborist.orchestrator.api.validator import RequestLimits, Validator
from arborist.orchestrator.clock import SystemClock
from arborist.orchestrator.deadlines import DeadlinePolicy, Deadlines
from arborist.orchestrator.decode import DecodeLimits, Decoder
from arborist.orchestrator.generation import (
    DeliveredRound,
    GenerationEvent,
    GenerationRequest,
    ServedModel,
    SpeculationOptions,
    Started,
)
from arborist.orchestrator.generation_account import GenerationAccount
from arborist.orchestrator.local_links import FixedWorkers, LocalDraftLink, LocalTargetLink
from arborist.orchestrator.policy_choice import PolicyChoice
from arborist.orchestrator.request_trace import NoTrace
from arborist.orchestrator.round import Round
from arborist.orchestrator.session import FinishReason, Session


class LocalModel:
    """A target, and a draft if wanted, loaded once; implements `generation.Generator`."""

    def __init__(
        self,
        target: TargetEngine,
        draft: DraftEngine | None,
        tokenizer: Tokenizer | None,
        config: ArboristConfig,
        *,
        want_node_tokens: bool = False,
    ) -> None:
        """Joins what is loaded; `load` does the loading.

        Args:
            target: Engine of the model.
            draft: Engine of the draft; None = plain decoding.
            tokenizer: Of the target; None = token ids only.
            config: Limits and default tree.
            want_node_tokens: Ask for the target's token at every node of every round.
        """
        info = target.info
        self._policies = PolicyChoice(config.speculation)
        self._tokenizer = tokenizer
        self._validator = Validator(
            RequestLimits.from_config(config.controller, config.speculation), tokenizer
        )
        self._workers = FixedWorkers(
            LocalTargetLink(target), LocalDraftLink(draft) if draft is not None else None
        )
        self._has_draft = draft is not None
        self._limits = DecodeLimits(
            prefill_chunk_tokens=config.controller.prefill_chunk_tokens,
            want_node_tokens=want_node_tokens,
            noise_aware=config.speculation.noise_aware,
        )
        self._deadlines = Deadlines(DeadlinePolicy())
        self._clock = SystemClock()
        self._model = ServedModel(
            id=info.name,
            context_length=info.context_length,
            vocab_size=info.vocab_size,
            eos_token_ids=info.eos_token_ids,
            created_s=self._clock.now_ns() // 1_000_000_000,
            speculation=self._has_draft,
        )

    @classmethod
    def load(
        cls, config: ArboristConfig, *, speculation: bool = True, want_node_tokens: bool = False
    ) -> Self:
        """Loads target, draft and tokenizer as the configuration of a server names them.

        Args:
            config: Models, device, dtype, KV capacity, limits.
            speculation: Whether to load the draft at all.
            want_node_tokens: Ask for the target's token at every node of every round.
        Raises:
            ArboristError: A model is missing, broken or does not fit; one line says which.
        """
        # Both import torch, which no other command wants.
        from transformers.utils.logging import disable_progress_bar

        from arborist.draft.any_draft import load_any_draft
        from arborist.target.engine import load_target
        from arborist.target.grammar_compiler import GrammarLimits

        disable_progress_bar()
        target, draft = config.target, config.draft
        target_engine = load_target(
            target.resolved_model(),
            device=target.device,
            dtype=target.dtype,
            kv_capacity_tokens=target.kv_capacity_tokens,
            revision=target.revision,
            name=target.served_name(),
            grammar_limits=GrammarLimits(target.grammar_compile_s, target.grammar_compile_bytes),
        )
        draft_engine = None
        if speculation:
            draft_engine = load_any_draft(
                draft.resolved_model(),
                target.resolved_model(),
                device=draft.device,
                dtype=draft.dtype,
                kv_capacity_tokens=draft.kv_capacity_tokens,
                revision=draft.revision,
                target_revision=target.revision,
                token_ids=draft.token_ids(),
            )
        tokenizer = load_tokenizer(target.resolved_model(), target.revision)
        return cls(
            target_engine, draft_engine, tokenizer, config, want_node_tokens=want_node_tokens
        )

    @property
    def ready(self) -> bool:
        """Returns True: what is loaded is ready."""
        return True

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Returns the target's tokenizer."""
        return self._tokenizer

    def models(self) -> list[ServedModel]:
        """Returns the one model."""
        return [self._model]

    def complete(
        self,
        request: IncomingRequest,
        *,
        on_text: Callable[[RoundEvent], None] | None = None,
        on_round: Callable[[Round], None] | None = None,
        watch: Callable[[TreePolicy], TreePolicy] | None = None,
    ) -> Completion:
        """Checks a request as a server does and generates to the end.

        Args:
            request: Unchecked.
            on_text: Called with every round as a client would see it.
            on_round: Called with every round as the controller sees it: tree, phases, margins.
            watch: Given the request's policy, returns what decides in its place: the same policy
                with something around it that looks on. Not called for `ngram`, which has no pool.
        Returns:
            What a client gets.
        Raises:
            ArboristError: The request is refused, or the models failed.
        """
        return asyncio.run(self._complete(request, on_text, on_round, watch))

    def generate(self, request: GenerationRequest) -> LocalGeneration:
        """Starts a checked request.

        Raises:
            InvalidArgumentError: The tree is larger than allowed.
        """
        return self._start(request, None, None)

    async def _complete(
        self,
        incoming: IncomingRequest,
        on_text: Callable[[RoundEvent], None] | None,
        on_round: Callable[[Round], None] | None,
        watch: Callable[[TreePolicy], TreePolicy] | None,
    ) -> Completion:
        request = self._validator.validate(incoming, self.models())
        generation = self._start(request.generation, on_round, watch)
        progress = Progress()
        async with aclosing(stream_completion(generation, request, self._tokenizer)) as events:
            async for event in events:
                round_ = progress.take(write_event(event))
                if round_ is not None and on_text is not None:
                    on_text(round_)
        return progress.completion()

    def _start(
        self,
        request: GenerationRequest,
        on_round: Callable[[Round], None] | None,
        watch: Callable[[TreePolicy], TreePolicy] | None,
    ) -> LocalGeneration:
        sampling = request.sampling
        if not sampling.greedy:
            seed = request.seed if request.seed is not None else secrets.randbits(64)
            sampling = dataclasses.replace(sampling, seed=seed)
        else:
            sampling = dataclasses.replace(sampling, seed=0)
        request = dataclasses.replace(request, sampling=sampling)
        session = request.session(secrets.token_hex(8), self._model.eos_token_ids)
        policy = self._policy(request.speculation)
        if watch is not None and policy is not None and not isinstance(policy, NgramPolicy):
            policy = watch(policy)
        decoder = Decoder(
            session,
            self._workers,
            policy,
            limits=self._limits,
            deadlines=self._deadlines,
            clock=self._clock,
            trace=NoTrace(),
        )
        started = Started(
            session.session_id, self._model.id, len(session.prompt), sampling.seed, trace_id=""
        )
        account = GenerationAccount(
            self._clock.now_ns(), len(session.prompt), speculates=policy is not None
        )
        return LocalGeneration(started, session, decoder, account, self._clock, on_round)

    def _policy(self, asked: SpeculationOptions) -> Policy | None:
        policy = self._policies.choose(asked)
        if policy is None or self._has_draft or isinstance(policy, NgramPolicy):
            return policy
        if asked.enabled:
            raise InvalidArgumentError("speculation", "on", "off: no draft is loaded")
        return None


class LocalGeneration:
    """One output under way; implements `generation.Generation`, decoding as it is read."""

    def __init__(
        self,
        started: Started,
        session: Session,
        decoder: Decoder,
        account: GenerationAccount,
        clock: SystemClock,
        on_round: Callable[[Round], None] | None,
    ) -> None:
        """Takes over a decoder that has not run.

        Args:
            started: First event.
            session: The decoder's session.
            decoder: Decodes it.
            account: Empty account.
            clock: Time.
            on_round: Called with every round.
        """
        self._started: Started | None = started
        self._session = session
        self._decoder = decoder
        self._rounds = cast("AsyncGenerator[Round, None]", decoder.run())
        self._account = account
        self._clock = clock
        self._on_round = on_round
        self._reason: FinishReason | None = None
        self._over = False

    def __aiter__(self) -> AsyncIterator[GenerationEvent]:
        """Returns itself."""
        return self

    async def __anext__(self) -> GenerationEvent:
        """Returns the next event, decoding a round for it."""
        if self._started is not None:
            started, self._started = self._started, None
            return started
        if self._over:
            raise StopAsyncIteration
        if self._reason is None:
            round_ = await anext(self._rounds, None)
            if round_ is not None:
                return self._deliver(round_)
            self._reason = self._session.finish_reason
        await self.aclose()
        reason = self._reason or FinishReason.CANCELLED
        return self._account.summary(reason, self._clock.now_ns())

    async def finish(self, reason: FinishReason, num_tokens: int) -> None:
        """Ends the output early; the next event is the Summary.

        Args:
            reason: Why.
            num_tokens: Tokens that count as delivered.
        """
        self._reason = reason
        self._account.completion_tokens = num_tokens

    def leave(self) -> None:
        """Frees the engines' state; safe to call twice."""
        self._over = True
        self._decoder.close()

    async def aclose(self) -> None:
        """Ends the rounds too; safe to call twice."""
        self.leave()
        await self._rounds.aclose()

    def _deliver(self, round_: Round) -> DeliveredRound:
        self._account.add(round_)
        if self._on_round is not None:
            self._on_round(round_)
        return DeliveredRound.of(round_)
