"""Links that call engines in process: the `monolith` of DESIGN §9, and unit tests."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from arborist.core.engine import (
    DraftEngine,
    DraftOpen,
    Expand,
    ExpandTree,
    Extend,
    Extended,
    ModelInfo,
    Prefill,
    PrefillResult,
    SessionKey,
    TargetEngine,
    TargetOpen,
    Verify,
    VerifyResult,
)
from arborist.core.errors import ArboristError, ResourceExhaustedError, SessionFailedError
from arborist.core.features import FeatureSpec
from arborist.core.pool import Pool
from arborist.core.stamp import Stamp
from arborist.core.tree import IntArray, Level, VerifyTree
from arborist.orchestrator.links import (
    DraftLink,
    Features,
    Pairs,
    PrefilledChunk,
    Reply,
    TargetLink,
    TreeRequest,
    Verified,
)
from arborist.orchestrator.request_trace import SpanName

OutcomeT = TypeVar("OutcomeT")
_CONTROLLER = "local"


def _expect(outcome: object, kind: type[OutcomeT]) -> OutcomeT:
    if isinstance(outcome, ArboristError):
        raise outcome
    if not isinstance(outcome, kind):
        raise SessionFailedError(f"expected {kind.__name__}, got {type(outcome).__name__}")
    return outcome


def _key(session_id: str) -> SessionKey:
    return (_CONTROLLER, session_id)


def _tensor(features: Features | None) -> Tensor | None:
    if features is not None and not isinstance(features, Tensor):
        raise SessionFailedError("in-process features must be torch tensors")
    return features


class LocalTargetLink:
    """A target engine called directly; stamps and deadlines have nothing to guard here."""

    def __init__(self, engine: TargetEngine) -> None:
        self._engine = engine

    @property
    def info(self) -> ModelInfo:
        """Returns what the engine holds."""
        return self._engine.info

    @property
    def keeps_features(self) -> bool:
        """Returns whether the engine keeps all features."""
        return self._engine.keeps_features

    @property
    def costs(self) -> None:
        """Returns None: nothing was measured."""
        return None

    @property
    def num_sessions(self) -> int:
        """Returns 1: whoever calls in process waits for one session at a time."""
        return 1

    @property
    def prefilled_tokens(self) -> int:
        """Returns 0: no prompt is computed while another session waits for its round."""
        return 0

    async def open(
        self, session_id: str, epoch: int, request: TargetOpen, deadline_s: float
    ) -> int:
        """Reserves the session, which begins from nothing."""
        self._engine.open(_key(session_id), replace(request, prefix=None))
        return 0

    async def prefill(
        self,
        session_id: str,
        stamp: Stamp,
        begin: int,
        tokens: list[int],
        *,
        last: bool,
        want_features: bool,
        num_logprobs: int | None,
        traceparent: str,
        deadline_s: float,
    ) -> Reply[PrefilledChunk]:
        """Runs a chunk of the prompt."""
        work = Prefill(_key(session_id), begin, tokens, last, want_features, num_logprobs)
        started = time.perf_counter()
        result = _expect(self._engine.run([work])[0], PrefillResult)
        chunk = PrefilledChunk(result.features, result.root, result.logprobs)
        return Reply(chunk, 0.0, _ms_since(started))

    async def verify(
        self,
        session_id: str,
        stamp: Stamp,
        committed_length: int,
        root: int,
        tree: VerifyTree,
        *,
        want_features: bool,
        want_node_tokens: bool,
        num_logprobs: int | None,
        traceparent: str,
        deadline_s: float,
    ) -> Reply[Verified]:
        """Verifies a tree."""
        work = Verify(
            _key(session_id),
            committed_length,
            root,
            tree.tokens,
            tree.parent_indices,
            want_features,
            want_node_tokens,
            num_logprobs,
        )
        started = time.perf_counter()
        result = _expect(self._engine.run([work])[0], VerifyResult)
        verified = Verified(
            result.accepted_nodes,
            result.bonus,
            result.features,
            result.node_tokens,
            result.min_margin,
            result.logprobs,
        )
        return Reply(verified, 0.0, _ms_since(started))

    async def read_features(
        self, session_id: str, begin: int, end: int, deadline_s: float
    ) -> Reply[Features]:
        """Reads stored features."""
        started = time.perf_counter()
        features = self._engine.read_features(_key(session_id), begin, end)
        return Reply(features, 0.0, _ms_since(started))

    def release(self, session_id: str) -> None:
        """Frees the session."""
        self._engine.release(_key(session_id))


class LocalDraftLink:
    """A draft engine called directly."""

    def __init__(self, engine: DraftEngine) -> None:
        self._engine = engine

    @property
    def info(self) -> ModelInfo:
        """Returns what the engine holds."""
        return self._engine.info

    @property
    def feature_spec(self) -> FeatureSpec | None:
        """Returns the features the draft wants."""
        return self._engine.feature_spec

    @property
    def grows_trees(self) -> bool:
        """Returns True: every engine here does."""
        return True

    @property
    def costs(self) -> None:
        """Returns None: nothing was measured."""
        return None

    async def open(self, session_id: str, epoch: int, request: DraftOpen, deadline_s: float) -> int:
        """Reserves the session, which begins from nothing."""
        self._engine.open(_key(session_id), replace(request, prefix=None))
        return 0

    async def append(
        self, session_id: str, stamp: Stamp, pairs: Pairs, *, traceparent: str, deadline_s: float
    ) -> Reply[None]:
        """Extend without a level."""
        work = Extend(_key(session_id), pairs.begin, pairs.tokens, _tensor(pairs.features))
        started = time.perf_counter()
        _expect(self._engine.run([work])[0], Extended)
        return Reply(None, 0.0, _ms_since(started))

    async def extend(
        self,
        session_id: str,
        stamp: Stamp,
        pairs: Pairs,
        top_k: int,
        *,
        traceparent: str,
        deadline_s: float,
    ) -> Reply[Level]:
        """Extend that returns level 1."""
        work = Extend(_key(session_id), pairs.begin, pairs.tokens, _tensor(pairs.features), top_k)
        started = time.perf_counter()
        level = _expect(self._engine.run([work])[0], Level)
        return Reply(level, 0.0, _ms_since(started))

    async def expand(
        self,
        session_id: str,
        stamp: Stamp,
        frontier: IntArray,
        top_k: int,
        *,
        traceparent: str,
        deadline_s: float,
    ) -> Reply[Level]:
        """Expands the frontier by one level."""
        work = Expand(_key(session_id), frontier.tolist(), top_k)
        started = time.perf_counter()
        level = _expect(self._engine.run([work])[0], Level)
        return Reply(level, 0.0, _ms_since(started))

    async def extend_tree(
        self,
        session_id: str,
        stamp: Stamp,
        pairs: Pairs,
        request: TreeRequest,
        *,
        traceparent: str,
        level_spans: Sequence[SpanName],
        deadline_s: float,
    ) -> tuple[Reply[Level], Reply[Pool]]:
        """Extend, then ExpandTree."""
        extended = await self.extend(
            session_id,
            stamp,
            pairs,
            request.top_k,
            traceparent=traceparent,
            deadline_s=deadline_s,
        )
        work = ExpandTree(_key(session_id), request.policy, request.depth, request.top_k)
        started = time.perf_counter()
        pool = _expect(self._engine.run([work])[0], Pool)
        return extended, Reply(pool, 0.0, _ms_since(started))

    def release(self, session_id: str) -> None:
        """Frees the session."""
        self._engine.release(_key(session_id))


class FixedWorkers:
    """One target and at most one draft, always there."""

    def __init__(self, target: TargetLink, draft: DraftLink | None) -> None:
        self._target = target
        self._draft = draft

    async def target(
        self, avoid: TargetLink | None = None, full: Collection[TargetLink] = ()
    ) -> TargetLink:
        """Returns the target."""
        return self._target

    def draft(self) -> DraftLink | None:
        """Returns the draft."""
        return self._draft

    def moving(self) -> AbstractContextManager[None]:
        """Does nothing: there is no other target to move to."""
        return nullcontext()

    async def wait_for_room(self, error: ResourceExhaustedError) -> None:
        """Raises what the target said: nothing else runs here that would make room."""
        raise error


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
