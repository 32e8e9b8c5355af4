"""The target engine: one forward over any mix of prompts and trees, accept, commit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from arborist.common.causal_model import CausalModel, load_model
from arborist.common.errors import internal_error
from arborist.common.packed_attention import PackedBatch, Segment
from arborist.core.accept import accept
from arborist.core.engine import (
    ModelInfo,
    Prefill,
    PrefillResult,
    SessionKey,
    TargetOpen,
    TargetOutcome,
    TargetWork,
    Verify,
    VerifyResult,
)
from arborist.core.errors import (
    ArboristError,
    InvalidArgumentError,
    ResourceExhaustedError,
    SessionFailedError,
    UnknownSessionError,
)
from arborist.core.features import FeatureSpec
from arborist.core.logprobs import TokenLogprobs, token_logprobs
from arborist.core.prefix import Prefix, PrefixCounts
from arborist.core.processors import LogitProcessors, make_processors
from arborist.core.sampling import SamplingParams, draw_tokens
from arborist.core.schema_text import RESPONSE_FORMAT
from arborist.core.shape import MAX_NUM_DRAFT_TOKENS
from arborist.core.tree import check_tree, node_paths
from arborist.target.grammar_compiler import GrammarCompiler, GrammarLimits
from arborist.target.kv import RETRY_AFTER_MS, FeatureRetention, KvPool
from arborist.target.prefix_cache import PrefixCache

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Session:
    """What a session was opened with.

    Attributes:
        request: As asked.
        dtype: Element type of its features; None = it wants none.
        processors: Of its logits; None = all off.
        tokens: Token of every KV position.
        num_reused: Positions taken over from earlier sessions.
    """

    request: TargetOpen
    dtype: torch.dtype | None
    processors: LogitProcessors | None
    tokens: list[int] = field(default_factory=list)
    num_reused: int = 0

    def append(self, tokens: Sequence[int]) -> None:
        """Notes tokens whose KV was committed."""
        self.tokens.extend(tokens)
        if self.processors is not None:
            self.processors.append(tokens)


@dataclass(frozen=True, slots=True)
class _Plan:
    """One checked item, as rows of the forward.

    Attributes:
        index: Place in the batch.
        work: The item.
        session: Its session.
        segment: Its rows, for attention.
        tokens: Token id of each row.
        rows: Its rows in the packed forward.
        logit_rows: Its rows among the rows that have logits.
    """

    index: int
    work: TargetWork
    session: _Session
    segment: Segment
    tokens: list[int]
    rows: slice
    logit_rows: slice


class HfTargetEngine:
    """A TargetEngine over a Hugging Face causal language model.

    Between two calls every session's KV holds its committed tokens but the last. A forward writes
    behind that; only an accepted outcome commits rows, so whatever fails changes nothing.
    """

    def __init__(
        self,
        model: CausalModel,
        pool: KvPool,
        prefixes: PrefixCache | None = None,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        """Joins a model and its memory.

        Args:
            model: The model.
            pool: KV and features of its layout.
            prefixes: What ended sessions leave to those that begin alike; None = nothing.
            grammars: Compiles schemas for it; None = outputs cannot be constrained.
        """
        self._model = model
        self._pool = pool
        self._prefixes = prefixes
        self._grammars = grammars
        self._sessions: dict[SessionKey, _Session] = {}

    @property
    def info(self) -> ModelInfo:
        """Returns what is loaded."""
        return self._model.info

    @property
    def kv_capacity_tokens(self) -> int:
        """Returns all KV positions."""
        return self._pool.capacity

    @property
    def kv_reserved_tokens(self) -> int:
        """Returns KV positions reserved by sessions."""
        return self._pool.reserved

    @property
    def keeps_features(self) -> bool:
        """Returns whether every committed position's features can be read back."""
        return self._pool.keeps_features

    def prepare(self, request: TargetOpen) -> None:
        """Compiles the schema of a request, so that `open` finds it; any thread may call it.

        Args:
            request: What a session will be opened with.
        Raises:
            InvalidArgumentError: There is a schema, and it cannot be compiled.
            MismatchError: The target's tokenizer cannot be used.
        """
        if request.json_schema is not None:
            self._require_grammars().compile(request.json_schema)

    def open(self, session: SessionKey, request: TargetOpen) -> int:
        """Reserves KV; opening an open session drops its old state.

        Args:
            session: Whose it is.
            request: What it needs.
        Returns:
            Positions reserved, in tokens: max_length + max_draft_tokens + 1.
        Raises:
            ResourceExhaustedError: It does not fit now; an old state is dropped all the same.
            InvalidArgumentError: A bound is out of range, unknown feature layers or token ids, or a
                schema that cannot be compiled.
        """
        context = self.info.context_length
        if not 1 <= request.max_length <= context:
            raise InvalidArgumentError("max_length", request.max_length, f"in [1, {context}]")
        if not 0 <= request.max_draft_tokens <= MAX_NUM_DRAFT_TOKENS:
            raise InvalidArgumentError(
                "max_draft_tokens", request.max_draft_tokens, f"in [0, {MAX_NUM_DRAFT_TOKENS}]"
            )
        _check_processors(request, self.info.vocab_size)
        if request.prefix is not None and len(request.prefix.tokens) > request.max_length:
            raise InvalidArgumentError(
                "prefix.tokens", len(request.prefix.tokens), f"at most {request.max_length}"
            )
        schema = request.json_schema
        matcher = None if schema is None else self._require_grammars().matcher(schema)
        processors = make_processors(
            request.sampling, request.prompt_length, request.end_token_ids, matcher
        )
        spec = request.feature_spec
        layout = None if spec is None else self._model.feature_layout(spec)
        self.release(session)
        tokens = request.max_length + request.max_draft_tokens + 1
        self._pool.reserve(session, tokens, layout)
        dtype = None if layout is None else layout.dtype
        opened = _Session(request, dtype, processors)
        self._sessions[session] = self._take_over(session, opened)
        return tokens

    def num_reused(self, session: SessionKey) -> int:
        """Returns the KV positions that a session took over when it was opened."""
        opened = self._sessions.get(session)
        return 0 if opened is None else opened.num_reused

    def known_length(self, prefix: Prefix) -> int:
        """Returns how many leading tokens an Open would most likely take over; from any thread."""
        return 0 if self._prefixes is None else self._prefixes.length(prefix)

    def keep(self, session: SessionKey) -> None:
        """Leaves what a session has committed to those that begin alike; it may then be released.

        Does nothing for an unknown session or one that shares nothing.
        """
        opened = self._sessions.get(session)
        if opened is None or self._prefixes is None:
            return
        request, entry = opened.request, self._pool.view(session)
        if request.prefix is not None:
            spec = request.feature_spec
            self._prefixes.keep(request.prefix.scope, spec, entry, opened.tokens)

    @property
    def prefix_counts(self) -> PrefixCounts:
        """Returns what the prefix cache did so far; zeros when there is none."""
        return PrefixCounts() if self._prefixes is None else self._prefixes.counts

    def run(self, batch: Sequence[TargetWork]) -> list[TargetOutcome]:
        """Runs one forward over any mix of work, at most one item per session.

        Args:
            batch: Prompts' chunks and trees.
        Returns:
            One outcome per item, in order; an error concerns that item alone and leaves its
            session as it was, unless something broke that nobody expects: that session is gone.
        """
        outcomes: list[TargetOutcome] = []
        plans: list[_Plan] = []
        named: set[SessionKey] = set()
        for work in batch:
            try:
                if work.session in named:
                    raise InvalidArgumentError("session", work.session[1], "named once in a batch")
                plan = self._plan(len(outcomes), work, plans)
            except ArboristError as error:
                outcomes.append(error)
            else:
                plans.append(plan)
                named.add(work.session)
                outcomes.append(_UNSETTLED)
        if not plans:
            return outcomes
        packed = PackedBatch([plan.segment for plan in plans])
        try:
            logits = self._forward(packed, plans)
        except torch.OutOfMemoryError:
            full = ResourceExhaustedError(
                f"no memory on {self._model.device} for {plans[-1].rows.stop} rows",
                retry_after_ms=RETRY_AFTER_MS,
            )
            return [full if outcome is _UNSETTLED else outcome for outcome in outcomes]
        for plan in plans:
            outcomes[plan.index] = self._outcome(plan, packed, logits)
        return outcomes

    def read_features(self, session: SessionKey, begin: int, end: int) -> Tensor:
        """Returns stored features of [begin, end).

        Args:
            session: Whose features.
            begin: First position.
            end: One past the last position, at most the KV length.
        Returns:
            (end − begin, width), in the dtype of the session's feature_spec.
        Raises:
            UnknownSessionError: No such session.
            InvalidArgumentError: Positions that were never there or are no longer kept.
        """
        return self._pool.features(session, begin, end)

    def release(self, session: SessionKey) -> None:
        """Frees everything of the session; unknown sessions are no error."""
        self._sessions.pop(session, None)
        self._pool.free(session)

    def kv_length(self, session: SessionKey) -> int:
        """Returns the committed KV positions of a session.

        Raises:
            UnknownSessionError: No such session.
        """
        return self._pool.view(session).length

    def warm_up(self) -> None:
        """Runs a prompt and a small tree once, so that no client pays for first calls.

        Raises:
            ArboristError: It did not work; the worker must not serve.
        """
        session = ("arborist", "warm-up")
        nodes = min(8, self.info.vocab_size)
        self.open(session, TargetOpen(SamplingParams(), None, max_length=8, max_draft_tokens=nodes))
        try:
            prompt = Prefill(session, 0, [0] * 4, last=True, want_features=False)
            tree = Verify(session, 5, 0, list(range(nodes)), [0] * nodes, want_features=False)
            for work in (prompt, tree):
                (outcome,) = self.run([work])
                if isinstance(outcome, ArboristError):
                    raise outcome
        finally:
            self.release(session)

    def check_integrity(self) -> None:
        """Checks that KV and sessions agree.

        Raises:
            ArboristError: They do not.
        """
        self._pool.check_integrity()
        if self._prefixes is not None:
            self._prefixes.check_integrity()
        for key, session in self._sessions.items():
            length = self._pool.view(key).length
            limit = session.request.max_length + session.request.max_draft_tokens
            if length > limit:
                raise ArboristError(f"KV length of session {key[1]} is {length}, limit {limit}")
            if len(session.tokens) != length:
                raise ArboristError(
                    f"session {key[1]} holds {len(session.tokens)} tokens, its KV length is "
                    f"{length}"
                )
            counted = None if session.processors is None else session.processors.num_tokens
            if counted not in (None, length):
                raise ArboristError(
                    f"session {key[1]} counts {counted} tokens, its KV length is {length}"
                )

    def _take_over(self, session: SessionKey, opened: _Session) -> _Session:
        """Copies what is known of the session's beginning; returns the session with it."""
        prefix = opened.request.prefix
        if prefix is None or self._prefixes is None:
            return opened
        spec, entry = opened.request.feature_spec, self._pool.view(session)
        count = self._prefixes.take_over(prefix, spec, entry)
        opened.append(prefix.tokens[:count])
        return replace(opened, num_reused=count)

    def _require_grammars(self) -> GrammarCompiler:
        if self._grammars is None:
            raise InvalidArgumentError(
                RESPONSE_FORMAT, "given", "absent: this target cannot constrain outputs"
            )
        return self._grammars

    def _plan(self, index: int, work: TargetWork, plans: list[_Plan]) -> _Plan:
        session = self._sessions.get(work.session)
        if session is None:
            raise UnknownSessionError(f"unknown session {work.session[1]}")
        kv = self._pool.view(work.session)
        if isinstance(work, Prefill):
            _check_prefill(work, session.request, kv.length, self.info.vocab_size)
            tokens, parents, num_logits = work.tokens, None, int(work.last)
        else:
            _check_verify(work, session.request, kv.length, self.info.vocab_size)
            tokens, parents = [work.root, *work.tokens], work.parent_indices
            num_logits = len(tokens)
        row = plans[-1].rows.stop if plans else 0
        logit_row = plans[-1].logit_rows.stop if plans else 0
        return _Plan(
            index,
            work,
            session,
            Segment(kv, kv.length, len(tokens), parents),
            tokens,
            slice(row, row + len(tokens)),
            slice(logit_row, logit_row + num_logits),
        )

    def _forward(self, packed: PackedBatch, plans: list[_Plan]) -> Tensor:
        tokens: list[int] = []
        positions: list[int] = []
        logit_rows: list[int] = []
        for plan in plans:
            tokens += plan.tokens
            positions += [plan.segment.past + depth for depth in plan.segment.depths]
            num_logits = plan.logit_rows.stop - plan.logit_rows.start
            logit_rows += range(plan.rows.stop - num_logits, plan.rows.stop)
        return self._model.forward(packed, tokens, positions, logit_rows)

    def _outcome(self, plan: _Plan, packed: PackedBatch, logits: Tensor) -> TargetOutcome:
        """Settles an item; raises nothing, for the items before it are committed."""
        try:
            return self._settle(plan, packed, logits[plan.logit_rows])
        except ArboristError as error:
            return error
        except Exception:  # noqa: BLE001 - one bad item must not make the others run again
            failed = internal_error(SessionFailedError, "the session failed")
            _log.exception("incident %s: session given up", failed.metadata["incident"])
            # Some of its rows may be committed and some not.
            self.release(plan.work.session)
            return failed

    @torch.inference_mode()
    def _settle(self, plan: _Plan, packed: PackedBatch, logits: Tensor) -> TargetOutcome:
        if isinstance(plan.work, Prefill):
            return self._settle_prefill(plan, plan.work, packed, logits)
        return self._settle_verify(plan, plan.work, packed, logits)

    def _settle_prefill(
        self, plan: _Plan, work: Prefill, packed: PackedBatch, logits: Tensor
    ) -> PrefillResult:
        if not bool(packed.hidden[plan.rows].isfinite().all()):
            raise SessionFailedError(f"hidden states of session {work.session[1]} are not finite")
        root, margin, logprobs = None, 0.0, list[TokenLogprobs]()
        if work.last:
            position = work.begin + len(work.tokens)
            (root,), (margin,) = _draw(plan, logits, [position])
            logprobs = _logprobs(logits, [root], work.num_logprobs)
        features = _features(plan, packed, list(range(len(work.tokens))), work.want_features)
        self._pool.compact(work.session, range(len(work.tokens)), features)
        plan.session.append(work.tokens)
        return PrefillResult(
            work.begin,
            features if work.want_features else None,
            root,
            logprobs[0] if logprobs else None,
            margin,
        )

    def _settle_verify(
        self, plan: _Plan, work: Verify, packed: PackedBatch, logits: Tensor
    ) -> VerifyResult:
        # The token after a node of depth d has index committed_length + d.
        positions = [work.committed_length + depth for depth in plan.segment.depths]
        node_tokens, margins = _draw(plan, logits, positions)
        walk = accept(work.tokens, work.parent_indices, node_tokens)
        kept = [0, *walk.accepted_nodes]
        drawn = [node_tokens[node] for node in kept]
        logprobs = _logprobs(logits, drawn, work.num_logprobs, kept)
        features = _features(plan, packed, kept, work.want_features)
        self._pool.compact(work.session, kept, features)
        plan.session.append([plan.tokens[node] for node in kept])
        return VerifyResult(
            walk.accepted_nodes,
            walk.bonus,
            features if work.want_features else None,
            node_tokens if work.want_node_tokens else [],
            min(margins[node] for node in kept),
            logprobs,
        )


def load_target(
    model_path: str | Path,
    *,
    device: str,
    dtype: str,
    kv_capacity_tokens: int,
    feature_retention: FeatureRetention = "all",
    prefix_cache_tokens: int = 0,
    revision: str | None = None,
    name: str | None = None,
    grammar_limits: GrammarLimits | None = None,
) -> HfTargetEngine:
    """Loads a model and makes its engine.

    Args:
        model_path: Folder or hub name of a decoder-only causal language model.
        device: "cpu" or "cuda:N".
        dtype: "float32", "bfloat16" or "float16".
        kv_capacity_tokens: KV positions of all sessions together.
        feature_retention: Positions of each session whose features are kept.
        prefix_cache_tokens: KV positions kept for sessions that begin like earlier ones, beside
            those of sessions; 0 = none.
        revision: Branch, tag or commit of a hub name.
        name: Served name; None = the last part of `model_path`.
        grammar_limits: What compiling a schema may take; None = the defaults.
    Returns:
        The engine, without sessions.
    Raises:
        InvalidArgumentError: No such model, device or dtype, or a bound out of range.
        MismatchError: The model cannot be served.
    """
    model = load_model(model_path, device=device, dtype=dtype, revision=revision, name=name)
    pool = KvPool(model.kv_layout, kv_capacity_tokens, model.device, model.dtype, feature_retention)
    prefixes = None
    if prefix_cache_tokens:
        prefixes = PrefixCache(
            model.kv_layout,
            prefix_cache_tokens,
            model.device,
            model.dtype,
            # What heads of EAGLE-1 and 2 read; with "last_n" most sessions keep too little.
            model.feature_layout(FeatureSpec()) if feature_retention == "all" else None,
        )
    info = model.info
    grammars = GrammarCompiler(
        str(model_path),
        revision,
        info.vocab_size,
        info.eos_token_ids,
        grammar_limits or GrammarLimits(),
    )
    return HfTargetEngine(model, pool, prefixes, grammars)


# Stands where an outcome will be; no caller ever sees it.
_UNSETTLED = ArboristError("the forward has not run")


def _check_prefill(work: Prefill, request: TargetOpen, length: int, vocab_size: int) -> None:
    if work.begin != length:
        raise InvalidArgumentError("begin", work.begin, f"{length}, the KV length")
    if not work.tokens:
        raise InvalidArgumentError("tokens", "empty", "at least one token")
    if length + len(work.tokens) > request.max_length:
        raise InvalidArgumentError(
            "tokens", len(work.tokens), f"at most {request.max_length - length} more"
        )
    for place, token in enumerate(work.tokens):
        if not 0 <= token < vocab_size:
            raise InvalidArgumentError(f"tokens[{place}]", token, f"in [0, {vocab_size})")


def _check_verify(work: Verify, request: TargetOpen, length: int, vocab_size: int) -> None:
    if work.committed_length != length + 1:
        raise InvalidArgumentError(
            "base.committed_length", work.committed_length, f"{length + 1}, the KV length + 1"
        )
    if work.committed_length > request.max_length:
        raise InvalidArgumentError(
            "base.committed_length", work.committed_length, f"at most {request.max_length}"
        )
    if not 0 <= work.root < vocab_size:
        raise InvalidArgumentError("root", work.root, f"in [0, {vocab_size})")
    check_tree(work.tokens, work.parent_indices, request.max_draft_tokens, vocab_size)


def _check_processors(request: TargetOpen, vocab_size: int) -> None:
    if not 0 <= request.prompt_length <= request.max_length:
        raise InvalidArgumentError(
            "prompt_length", request.prompt_length, f"in [0, {request.max_length}], max_length"
        )
    biased = [token for token, _ in request.sampling.logit_bias]
    for name, tokens in (("logit_bias", biased), ("end_token_ids", request.end_token_ids)):
        for token in tokens:
            if not 0 <= token < vocab_size:
                raise InvalidArgumentError(name, token, f"ids in [0, {vocab_size})")


def _draw(plan: _Plan, logits: Tensor, positions: list[int]) -> tuple[list[int], list[float]]:
    processors = plan.session.processors
    if processors is not None:
        logits = processors.apply(logits, _paths(plan.work), positions)
    try:
        return draw_tokens(logits, positions, plan.session.request.sampling)
    except ValueError as error:
        name = plan.work.session[1]
        raise SessionFailedError(f"logits of session {name} are not finite") from error


def _paths(work: TargetWork) -> Sequence[Sequence[int]]:
    """Returns the tokens between the committed KV and each row that has logits, its own last."""
    if isinstance(work, Prefill):
        return [work.tokens]
    return node_paths(work.root, work.tokens, work.parent_indices)


def _logprobs(
    logits: Tensor, tokens: list[int], num_top: int | None, rows: list[int] | None = None
) -> list[TokenLogprobs]:
    """Returns raw log-probs of tokens drawn at some rows; empty = none wanted."""
    if num_top is None:
        return []
    return token_logprobs(logits if rows is None else logits[rows], tokens, num_top)


def _features(plan: _Plan, packed: PackedBatch, kept: list[int], outlive: bool) -> Tensor | None:
    """Returns features of some rows of an item, (len(kept), width); None = none wanted.

    Args:
        plan: The item.
        packed: What the forward left.
        kept: Which of its rows.
        outlive: Whether they shall outlive the batch; else they may be a view.
    """
    spec: FeatureSpec | None = plan.session.request.feature_spec
    if spec is None:
        return None
    if spec.layer_ids is None:
        states = packed.hidden[plan.rows]  # [rows, hidden]
    else:
        inputs = [packed.layer_inputs[layer][plan.rows] for layer in spec.layer_ids]
        states = torch.cat(inputs, dim=-1)  # [rows, layers · hidden]
    if len(kept) < len(states):
        states = states[kept]
    return states.to(plan.session.dtype, copy=outlive)
