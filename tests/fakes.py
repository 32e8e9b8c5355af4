"""Engines without a model: a hash language model whose every token and feature can be recomputed.

The state after a prefix is a 64-bit hash of its tokens; the next token is a function of the state,
and a feature row is the state's eight bytes, exact in every float type. A draft that is given the
right features therefore knows the target's next token, and one that is given wrong ones does not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from arborist.core.accept import accept
from arborist.core.engine import (
    DraftOpen,
    DraftOutcome,
    DraftWork,
    ExpandTree,
    Extend,
    Extended,
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
    UnknownSessionError,
)
from arborist.core.features import FeatureSpec
from arborist.core.logprobs import TokenLogprobs
from arborist.core.pool import Pool, PoolLevel
from arborist.core.pool_policies import pool_policy
from arborist.core.sampling import SamplingParams
from arborist.core.tree import DraftTree, Level, check_tree, node_depths

FEATURE_WIDTH = 8
EMPTY_STATE = 0x5EED
_MASK = (1 << 64) - 1
_TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def mix(state: int, value: int) -> int:
    """Hashes a value into a state (SplitMix64's finalizer)."""
    state = (state ^ (value + 0x9E3779B97F4A7C15)) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def next_token(
    state: int,
    vocab_size: int,
    sampling: SamplingParams | None = None,
    num_output: int = 0,
    end_token_ids: Sequence[int] = (),
) -> int:
    """Returns the token after a prefix: of prefix, parameters and seed alone.

    Sampling takes the greedy token half of the time, so that a draft stays useful; a penalty
    changes a quarter of the tokens, each by how much of the prefix is output.
    """
    token = _drawn_token(state, vocab_size, sampling)
    if sampling is None:
        return token
    if sampling.penalized and mix(state, 3) % 4 == 0:
        token = (token + num_output) % vocab_size
    while num_output < sampling.min_tokens and token in end_token_ids:
        token = (token + 1) % vocab_size
    return token


def _drawn_token(state: int, vocab_size: int, sampling: SamplingParams | None) -> int:
    if sampling is not None and not sampling.greedy:
        drawn = mix(mix(state, 1), sampling.seed)
        if drawn & 1:
            return (drawn >> 1) % vocab_size
    return mix(state, 0) % vocab_size


def state_of(tokens: Sequence[int]) -> int:
    """Returns the state after a prefix."""
    state = EMPTY_STATE
    for token in tokens:
        state = mix(state, token)
    return state


def continuation(
    prompt: Sequence[int],
    count: int,
    vocab_size: int = 64,
    sampling: SamplingParams | None = None,
    end_token_ids: Sequence[int] = (),
) -> list[int]:
    """Returns what plain decoding of the hash model gives after a prompt."""
    state, tokens = state_of(prompt), []
    for num_output in range(count):
        tokens.append(next_token(state, vocab_size, sampling, num_output, end_token_ids))
        state = mix(state, tokens[-1])
    return tokens


def state_logprobs(state: int, token: int, num_top: int | None) -> TokenLogprobs | None:
    """Returns the log-probs of the token drawn in a state, exact in fp32; None = not wanted."""
    if num_top is None:
        return None
    own = -(state % 1024) / 64
    return TokenLogprobs(token, own, tuple((rank, own - rank) for rank in range(num_top)))


def feature_rows(states: Sequence[int], dtype: str = "float32") -> Tensor:
    """Returns the features of states, shape (len(states), 8): their bytes."""
    rows = [list(state.to_bytes(8, "little")) for state in states]
    return torch.tensor(rows, dtype=_TORCH_DTYPES[dtype]).reshape(len(rows), FEATURE_WIDTH)


def states_of_features(features: Tensor) -> list[int]:
    """Returns the states that feature rows spell; rows that spell none give other states."""
    rows = features.float().clamp(0, 255).int().tolist()
    return [int.from_bytes(bytes(row[:FEATURE_WIDTH]), "little") for row in rows]


def fake_info(name: str, digest: str, vocab_size: int, context_length: int) -> ModelInfo:
    """Describes the hash model."""
    return ModelInfo(
        name=name,
        digest=digest,
        vocab_size=vocab_size,
        hidden_size=FEATURE_WIDTH,
        num_layers=1,
        context_length=context_length,
        num_parameters=0,
        dtype="float32",
        embedding_digest="hash",
    )


@dataclass
class Behaviour:
    """How a fake misbehaves, changeable while it runs.

    Attributes:
        delay_s: Time every forward takes.
        gate: A forward waits until it is set.
        poison: A forward over work for one of these session ids raises.
        batches: Session ids of every forward so far, one list per forward.
        failing_open: Opening raises something nobody expects.
    """

    delay_s: float = 0.0
    gate: threading.Event = field(default_factory=threading.Event)
    poison: set[str] = field(default_factory=set)
    batches: list[list[str]] = field(default_factory=list)
    failing_open: bool = False

    def __post_init__(self) -> None:
        self.gate.set()

    def forward(self, sessions: list[str]) -> None:
        """Behaves."""
        self.batches.append(sessions)
        if not self.gate.wait(10.0):
            raise RuntimeError("the gate was never opened")
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.poison.intersection(sessions):
            raise RuntimeError(f"a secret prompt at 0x{id(self):x}")


@dataclass
class _TargetSession:
    request: TargetOpen
    reserved: int
    tokens: list[int] = field(default_factory=list)
    states: list[int] = field(default_factory=list)

    def append(self, token: int) -> None:
        self.states.append(mix(self.states[-1] if self.states else EMPTY_STATE, token))
        self.tokens.append(token)


class FakeTargetEngine:
    """A target over the hash model, with the errors of a real one."""

    def __init__(
        self,
        vocab_size: int = 64,
        context_length: int = 512,
        kv_capacity_tokens: int = 4096,
        digest: str = "target-digest",
    ) -> None:
        self._info = fake_info("hash", digest, vocab_size, context_length)
        self._sessions: dict[SessionKey, _TargetSession] = {}
        self._kv_capacity_tokens = kv_capacity_tokens
        self.behaviour = Behaviour()
        self.num_opened = 0

    @property
    def info(self) -> ModelInfo:
        """Returns the description."""
        return self._info

    @property
    def kv_capacity_tokens(self) -> int:
        """Returns all positions."""
        return self._kv_capacity_tokens

    @property
    def kv_reserved_tokens(self) -> int:
        """Returns reserved positions."""
        return sum(one.reserved for one in self._sessions.values())

    @property
    def keeps_features(self) -> bool:
        """Returns whether every committed position's features can be read back."""
        return True

    def prepare(self, request: TargetOpen) -> None:
        """Refuses a schema, breaks over it, or waits for the gate."""
        if request.json_schema == "refused":
            raise InvalidArgumentError("response_format", "a schema", "another")
        if request.json_schema == "broken":
            raise RuntimeError("a secret path /etc/shadow")
        if not self.behaviour.gate.wait(10.0):
            raise RuntimeError("the gate was never opened")

    def open(self, session: SessionKey, request: TargetOpen) -> int:
        """Reserves; an open session's old state is dropped."""
        if self.behaviour.failing_open:
            raise RuntimeError("a secret path /etc/shadow")
        self.release(session)
        if request.max_length > self._info.context_length:
            raise InvalidArgumentError(
                "max_length", request.max_length, f"at most {self._info.context_length}"
            )
        spec = request.feature_spec
        if spec is not None and spec.layer_ids is not None and max(spec.layer_ids) > 1:
            raise InvalidArgumentError("layer_ids", list(spec.layer_ids), "in [0, 1]")
        reserved = request.max_length + request.max_draft_tokens
        if self.kv_reserved_tokens + reserved > self._kv_capacity_tokens:
            raise ResourceExhaustedError("KV is full", retry_after_ms=250)
        self._sessions[session] = _TargetSession(request, reserved)
        self.num_opened += 1
        return reserved

    def run(self, batch: Sequence[TargetWork]) -> list[TargetOutcome]:
        """Runs every item."""
        self.behaviour.forward([work.session[1] for work in batch])
        return [self._run(work) for work in batch]

    def read_features(self, session: SessionKey, begin: int, end: int) -> Tensor:
        """Returns features of [begin, end)."""
        held = self._session(session)
        if end > len(held.states):
            raise InvalidArgumentError("end", end, f"at most the KV length {len(held.states)}")
        return self._features(held, held.states[begin:end])

    def release(self, session: SessionKey) -> None:
        """Forgets a session."""
        self._sessions.pop(session, None)

    def _session(self, key: SessionKey) -> _TargetSession:
        if key not in self._sessions:
            raise UnknownSessionError("no such session at this engine")
        return self._sessions[key]

    def _features(self, session: _TargetSession, states: Sequence[int]) -> Tensor:
        spec = session.request.feature_spec or FeatureSpec()
        return feature_rows(states, spec.dtype or "float32")

    def _run(self, work: TargetWork) -> TargetOutcome:
        try:
            session = self._session(work.session)
            return (
                self._prefill(session, work)
                if isinstance(work, Prefill)
                else self._verify(session, work)
            )
        except ArboristError as error:
            return error

    def _check_token(self, field_name: str, token: int) -> None:
        if not 0 <= token < self._info.vocab_size:
            raise InvalidArgumentError(field_name, token, f"in [0, {self._info.vocab_size})")

    def _prefill(self, session: _TargetSession, work: Prefill) -> PrefillResult:
        if work.begin != len(session.tokens):
            raise InvalidArgumentError("begin", work.begin, f"the KV length {len(session.tokens)}")
        if work.begin + len(work.tokens) > session.request.max_length:
            raise InvalidArgumentError("tokens", len(work.tokens), "within max_length")
        for token in work.tokens:
            self._check_token("tokens", token)
        for token in work.tokens:
            session.append(token)
        wanted = work.want_features and session.request.feature_spec is not None
        features = self._features(session, session.states[work.begin :]) if wanted else None
        if not work.last:
            return PrefillResult(work.begin, features, None)
        root = self._next(session.states[-1], session, len(session.tokens))
        logprobs = state_logprobs(session.states[-1], root, work.num_logprobs)
        return PrefillResult(work.begin, features, root, logprobs)

    def _verify(self, session: _TargetSession, work: Verify) -> VerifyResult:
        if work.committed_length != len(session.tokens) + 1:
            raise InvalidArgumentError(
                "base.committed_length", work.committed_length, f"{len(session.tokens) + 1}"
            )
        self._check_token("root", work.root)
        check_tree(
            work.tokens,
            work.parent_indices,
            session.request.max_draft_tokens,
            self._info.vocab_size,
        )
        states = [mix(session.states[-1], work.root)]
        for token, parent in zip(work.tokens, work.parent_indices, strict=True):
            states.append(mix(states[parent], token))
        node_tokens = [
            self._next(state, session, work.committed_length + depth)
            for state, depth in zip(states, node_depths(work.parent_indices), strict=True)
        ]
        accepted = accept(work.tokens, work.parent_indices, node_tokens)
        session.append(work.root)
        for node in accepted.accepted_nodes:
            session.append(work.tokens[node - 1])
        rows = [states[0], *(states[node] for node in accepted.accepted_nodes)]
        wanted = work.want_features and session.request.feature_spec is not None
        logprobs = [
            state_logprobs(states[node], node_tokens[node], work.num_logprobs)
            for node in (0, *accepted.accepted_nodes)
        ]
        return VerifyResult(
            accepted.accepted_nodes,
            accepted.bonus,
            self._features(session, rows) if wanted else None,
            node_tokens if work.want_node_tokens else [],
            1.0,
            [one for one in logprobs if one is not None],
        )

    def _next(self, state: int, session: _TargetSession, position: int) -> int:
        request = session.request
        num_output = position - request.prompt_length
        vocab_size, end_token_ids = self._info.vocab_size, request.end_token_ids
        return next_token(state, vocab_size, request.sampling, num_output, end_token_ids)


@dataclass
class _DraftSession:
    reserved: int
    num_pairs: int = 0
    newest: list[int] = field(default_factory=list)
    """States after every candidate of the newest level."""
    first: Level | None = None
    """Level 1 while it is the newest."""


class FakeDraftEngine:
    """A draft that reads the target's state out of the features; right `accuracy` of the time."""

    def __init__(
        self,
        vocab_size: int = 64,
        accuracy: float = 0.8,
        kv_capacity_tokens: int = 4096,
        digest: str = "draft-digest",
    ) -> None:
        self._info = fake_info("hash-draft", digest, vocab_size, 512)
        self._accuracy = accuracy
        self._sessions: dict[SessionKey, _DraftSession] = {}
        self._kv_capacity_tokens = kv_capacity_tokens
        self.behaviour = Behaviour()

    @property
    def info(self) -> ModelInfo:
        """Returns the description."""
        return self._info

    @property
    def feature_spec(self) -> FeatureSpec:
        """Returns what the draft wants."""
        return FeatureSpec()

    @property
    def feature_width(self) -> int:
        """Returns the width of a row."""
        return FEATURE_WIDTH

    @property
    def kv_capacity_tokens(self) -> int:
        """Returns all positions."""
        return self._kv_capacity_tokens

    @property
    def kv_reserved_tokens(self) -> int:
        """Returns reserved positions."""
        return sum(one.reserved for one in self._sessions.values())

    def open(self, session: SessionKey, request: DraftOpen) -> int:
        """Reserves; an open session's old state is dropped."""
        if self.behaviour.failing_open:
            raise RuntimeError("a secret path /etc/shadow")
        self.release(session)
        if self.kv_reserved_tokens + request.max_length > self._kv_capacity_tokens:
            raise ResourceExhaustedError("KV is full", retry_after_ms=250)
        self._sessions[session] = _DraftSession(request.max_length)
        return request.max_length

    def run(self, batch: Sequence[DraftWork]) -> list[DraftOutcome]:
        """Runs every item."""
        self.behaviour.forward([work.session[1] for work in batch])
        return [self._run(work) for work in batch]

    def release(self, session: SessionKey) -> None:
        """Forgets a session."""
        self._sessions.pop(session, None)

    def _run(self, work: DraftWork) -> DraftOutcome:
        try:
            session = self._sessions.get(work.session)
            if session is None:
                raise UnknownSessionError("no such session at this engine")
            first, session.first = session.first, None  # Also when an Extend fails now.
            if isinstance(work, Extend):
                return self._extend(session, work)
            if isinstance(work, ExpandTree):
                return self._expand_tree(session, work, first)
            if any(row >= len(session.newest) for row in work.rows):
                raise InvalidArgumentError("rows", work.rows, f"under {len(session.newest)}")
            return self._level(session, [session.newest[row] for row in work.rows], work.top_k)
        except ArboristError as error:
            return error

    def _extend(self, session: _DraftSession, work: Extend) -> Level | Extended:
        if work.begin != session.num_pairs:
            raise InvalidArgumentError("begin", work.begin, f"the pairs held, {session.num_pairs}")
        if work.features is None or work.features.shape[1] != FEATURE_WIDTH:
            raise InvalidArgumentError("features", "another shape", f"(rows, {FEATURE_WIDTH})")
        session.num_pairs += len(work.tokens)
        session.newest = []
        session.first = None
        if not work.top_k:
            return Extended(session.num_pairs)
        # Feature f_t is the state after x_t; with x_{t+1} it gives the state the root leaves.
        state = mix(states_of_features(work.features)[-1], work.tokens[-1])
        session.first = self._level(session, [state], work.top_k)
        return session.first

    def _expand_tree(self, session: _DraftSession, work: ExpandTree, first: Level | None) -> Pool:
        if first is None:
            raise InvalidArgumentError("levels", 0, "1, sent right behind its Extend")
        policy = pool_policy(work.policy, work.depth, work.top_k)
        tree = DraftTree(first)
        levels: list[PoolLevel] = []
        while (frontier := policy.frontier(tree)) is not None:
            states = [session.newest[row] for row in frontier.tolist()]
            levels.append(PoolLevel(frontier, self._level(session, states, work.top_k), 0.01))
            tree.grow(frontier, levels[-1].level)
        return Pool(levels)

    def _level(self, session: _DraftSession, states: list[int], top_k: int) -> Level:
        tokens = [self._candidates(state, top_k) for state in states]
        session.newest = [
            mix(state, token) for state, row in zip(states, tokens, strict=True) for token in row
        ]
        # A geometric distribution, so that deeper nodes of the best path beat shallow bad ones.
        logprobs = np.log(0.7) + np.log(0.3) * np.arange(top_k, dtype=np.float32)  # [top_k]
        return Level(
            np.array(tokens, dtype=np.int64),
            np.tile(logprobs.astype(np.float32), (len(states), 1)),
        )

    def _candidates(self, state: int, top_k: int) -> list[int]:
        vocab_size = self._info.vocab_size
        right = next_token(state, vocab_size)
        chance = mix(state, 2)
        known = (chance >> 11) * 2.0**-53 < self._accuracy
        others = [
            (right + 1 + (chance + step) % (vocab_size - 1)) % vocab_size for step in range(top_k)
        ]
        return [right, *others[: top_k - 1]] if known else others
