"""Links to workers that hold no model: a hash decides every token, and every fault is planned.

Sums that are exact leave no room for rounding: any difference in tokens is a fault of the loop.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np

from arborist.core.accept import accept
from arborist.core.cost_table import CostTable
from arborist.core.engine import DraftOpen, ModelInfo, TargetOpen
from arborist.core.errors import (
    ResourceExhaustedError,
    StaleStampError,
    UnavailableError,
    UnknownSessionError,
)
from arborist.core.features import FeatureSpec
from arborist.core.logprobs import TokenLogprobs
from arborist.core.pool import Pool, PoolLevel
from arborist.core.pool_policies import pool_policy
from arborist.core.prefix import Prefix
from arborist.core.sampling import SamplingParams
from arborist.core.stamp import Stamp
from arborist.core.tensor import RawTensor
from arborist.core.tree import DraftTree, IntArray, Level, VerifyTree, check_tree
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

VOCAB_SIZE = 64
INFO = ModelInfo("hash", "digest", VOCAB_SIZE, 2, 1, 4096, 1, "float32", (1,))

Hook = Callable[[str], Awaitable[None]]
"""Called before and after every command with its name; may raise, wait, or be cancelled in."""


def hash_token(
    prefix: list[int],
    params: SamplingParams,
    prompt_length: int = 0,
    end_token_ids: Sequence[int] = (),
) -> int:
    """The model: its token after a prefix is a function of prefix and seed. Never 0 or 1.

    With penalties it also depends on where the output begins, with min_tokens on what ends it.
    """
    seed = 0 if params.greedy else params.seed
    penalized = (params.presence_penalty, prompt_length) if params.penalized else ()
    key, salt = (seed, prefix, *penalized), 0
    early = len(prefix) - prompt_length < params.min_tokens
    while True:
        token = 2 + (zlib.crc32(repr(key).encode()) + salt) % (VOCAB_SIZE - 2)
        if not (early and token in end_token_ids):
            return token
        salt += 1


def hash_logprobs(prefix: list[int], token: int, num_top: int) -> TokenLogprobs:
    """The model's log-probs of the token it puts after a prefix: exact in fp32."""
    own = -(zlib.crc32(repr(prefix).encode()) % 1024) / 64
    return TokenLogprobs(token, own, tuple((rank, own - rank) for rank in range(num_top)))


def plain_decode(
    prompt: list[int], max_tokens: int, params: SamplingParams, end_token_ids: Sequence[int] = ()
) -> list[int]:
    """What the model says without anything of ours around it."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(hash_token(tokens, params, len(prompt), end_token_ids))
    return tokens[len(prompt) :]


async def no_fault(command: str) -> None:
    """Lets other tasks in, as a real wait would."""
    await asyncio.sleep(0)


@dataclass
class Faults:
    """Raises at the n-th moment a command passes, counted over all workers."""

    at: int = -1
    kinds: tuple[str, ...] = ()
    error: type[Exception] = UnavailableError
    seen: list[str] = field(default_factory=list)

    async def __call__(self, command: str) -> None:
        """Counts a moment; raises if it is the planned one."""
        await asyncio.sleep(0)
        if command.startswith(self.kinds):
            self.seen.append(command)
            if len(self.seen) - 1 == self.at:
                raise self.error("planned")


def features_of(tokens: list[int], begin: int, end: int) -> RawTensor:
    """Rows (position, token): a draft can tell whether it was given the right ones."""
    rows = np.array([[at, tokens[at]] for at in range(begin, end)], dtype="<i8")
    return RawTensor("int64", (end - begin, 2), rows.tobytes())


@dataclass
class _TargetSession:
    epoch: int
    request: TargetOpen
    kv: list[int] = field(default_factory=list)
    stamp: Stamp = field(default_factory=lambda: Stamp(0, -1, -1))

    def next_token(self, prefix: list[int]) -> int:
        """Returns the model's token after a prefix."""
        request = self.request
        return hash_token(prefix, request.sampling, request.prompt_length, request.end_token_ids)


class Kept:
    """What released sessions left, by scope."""

    def __init__(self) -> None:
        self._texts: list[tuple[str, list[int]]] = []

    def keep(self, prefix: Prefix | None, tokens: list[int]) -> None:
        """Keeps the tokens of a session that shares."""
        if prefix is not None:
            self._texts.append((prefix.scope, list(tokens)))

    def common(self, prefix: Prefix | None) -> list[int]:
        """Returns the longest beginning that is known."""
        best: list[int] = []
        for scope, tokens in self._texts:
            if prefix is not None and scope == prefix.scope:
                same = [a == b for a, b in zip(prefix.tokens, tokens, strict=False)]
                best = max(best, tokens[: [*same, False].index(False)], key=len)
        return list(best)


class FakeTarget:
    """A target worker's link; keeps the contract of `TargetLink` and of the worker behind it."""

    def __init__(self, hook: Hook = no_fault) -> None:
        self.hook = hook
        self.kept = Kept()
        self.prefilled_tokens = 0
        self.sessions: dict[str, _TargetSession] = {}
        self.opened = 0
        self.info = INFO
        self.costs: CostTable | None = None
        self.num_sessions = 1
        self.keeps_features = True

    async def open(
        self, session_id: str, epoch: int, request: TargetOpen, deadline_s: float
    ) -> int:
        """Reserves a session."""
        try:
            await self.hook("target.open")
            known = self.kept.common(request.prefix)
            self.sessions[session_id] = _TargetSession(epoch, request, known)
            self.opened += 1
            await self.hook("target.open")
            return len(known)
        except BaseException:
            self.release(session_id)
            raise

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
        """Takes a chunk of the prompt."""
        await self.hook("target.prefill")
        session = self._session(session_id, stamp)
        assert begin == len(session.kv)
        session.kv += tokens
        self.prefilled_tokens += len(tokens)
        features = features_of(session.kv, begin, len(session.kv)) if want_features else None
        root = session.next_token(session.kv) if last else None
        logprobs = None
        if root is not None and num_logprobs is not None:
            logprobs = hash_logprobs(session.kv, root, num_logprobs)
        await self.hook("target.prefill")
        return Reply(PrefilledChunk(features, root, logprobs), 0.0, 1.0)

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
        await self.hook("target.verify")
        session = self._session(session_id, stamp)
        assert len(session.kv) == committed_length - 1
        limit = session.request.max_draft_tokens
        check_tree(tree.tokens, tree.parent_indices, limit, VOCAB_SIZE)
        paths = [[root]]
        for token, parent in zip(tree.tokens, tree.parent_indices, strict=True):
            paths.append([*paths[parent], token])
        prefixes = [session.kv + path for path in paths]
        node_tokens = [session.next_token(prefix) for prefix in prefixes]
        outcome = accept(tree.tokens, tree.parent_indices, node_tokens)
        begin = len(session.kv)
        session.kv += [root, *(tree.tokens[node - 1] for node in outcome.accepted_nodes)]
        features = features_of(session.kv, begin, len(session.kv)) if want_features else None
        await self.hook("target.verify")
        logprobs = []
        if num_logprobs is not None:
            logprobs = [
                hash_logprobs(prefixes[node], node_tokens[node], num_logprobs)
                for node in (0, *outcome.accepted_nodes)
            ]
        verified = Verified(outcome.accepted_nodes, outcome.bonus, features, [], 1.0, logprobs)
        return Reply(verified, 0.1, 5.0)

    async def read_features(
        self, session_id: str, begin: int, end: int, deadline_s: float
    ) -> Reply[Features]:
        """Reads features of positions whose KV is there."""
        await self.hook("target.read_features")
        if session_id not in self.sessions:
            raise UnknownSessionError("no session")
        kv = self.sessions[session_id].kv
        assert end <= len(kv)
        return Reply(features_of(kv, begin, end), 0.0, 0.0)

    def release(self, session_id: str) -> None:
        """Frees a session."""
        session = self.sessions.pop(session_id, None)
        if session is not None:
            self.kept.keep(session.request.prefix, session.kv)

    def _session(self, session_id: str, stamp: Stamp) -> _TargetSession:
        if session_id not in self.sessions:
            raise UnknownSessionError("no session")
        session = self.sessions[session_id]
        if stamp.epoch != session.epoch or stamp <= session.stamp:
            raise StaleStampError("old")
        session.stamp = stamp
        return session


@dataclass
class _DraftSession:
    epoch: int
    request: DraftOpen
    tokens: list[int] = field(default_factory=list)
    level: list[list[int]] = field(default_factory=list)
    stamp: Stamp = field(default_factory=lambda: Stamp(0, -1, -1))

    @property
    def num_pairs(self) -> int:
        """Pairs held: one less than the tokens seen, the first of which came as a feature."""
        return max(len(self.tokens) - 1, 0)


class FakeDraft:
    """A draft worker's link whose level holds the right child with a chosen frequency.

    At accuracy 1 it is the best child; below that it may be any.
    """

    def __init__(
        self,
        accuracy: float,
        hook: Hook = no_fault,
        params: SamplingParams | None = None,
    ) -> None:
        self.hook = hook
        self.kept = Kept()
        self.num_appended = 0
        self.accuracy = accuracy
        self.params = params or SamplingParams()
        self.sessions: dict[str, _DraftSession] = {}
        self.opened = 0
        self.info = INFO
        self.feature_spec: FeatureSpec | None = FeatureSpec()
        self.grows_trees = True
        self.costs: CostTable | None = None

    async def open(self, session_id: str, epoch: int, request: DraftOpen, deadline_s: float) -> int:
        """Reserves a session."""
        try:
            await self.hook("draft.open")
            known = self.kept.common(request.prefix)
            session = _DraftSession(epoch, request, known)
            self.sessions[session_id] = session
            self.opened += 1
            await self.hook("draft.open")
            return self._num_held(session)
        except BaseException:
            self.release(session_id)
            raise

    async def append(
        self, session_id: str, stamp: Stamp, pairs: Pairs, *, traceparent: str, deadline_s: float
    ) -> Reply[None]:
        """Takes pairs."""
        await self.hook("draft.append")
        self._take(self._session(session_id, stamp), pairs)
        await self.hook("draft.append")
        return Reply(None, 0.0, 0.5)

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
        """Takes pairs and returns level 1."""
        await self.hook("draft.extend")
        session = self._session(session_id, stamp)
        self._take(session, pairs)
        level = self._grow(session, [[]], top_k)
        await self.hook("draft.extend")
        return Reply(level, 0.1, 1.0)

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
        """Expands the frontier."""
        await self.hook("draft.expand")
        session = self._session(session_id, stamp)
        level = self._grow(session, [session.level[row] for row in frontier.tolist()], top_k)
        await self.hook("draft.expand")
        return Reply(level, 0.1, 1.0)

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
        """Takes pairs and grows the whole pool."""
        extended = await self.extend(
            session_id,
            stamp,
            pairs,
            request.top_k,
            traceparent=traceparent,
            deadline_s=deadline_s,
        )
        await self.hook("draft.expand_tree")
        session = self._session(session_id, replace(stamp, step=stamp.step + 1))
        policy = pool_policy(request.policy, request.depth, request.top_k)
        tree = DraftTree(extended.value)
        levels: list[PoolLevel] = []
        while (frontier := policy.frontier(tree)) is not None:
            paths = [session.level[row] for row in frontier.tolist()]
            levels.append(PoolLevel(frontier, self._grow(session, paths, request.top_k), 1.0))
            tree.grow(frontier, levels[-1].level)
        await self.hook("draft.expand_tree")
        return extended, Reply(Pool(levels), 0.1, float(len(levels)))

    def release(self, session_id: str) -> None:
        """Frees a session."""
        session = self.sessions.pop(session_id, None)
        if session is not None:
            self.kept.keep(session.request.prefix, session.tokens)

    def _session(self, session_id: str, stamp: Stamp) -> _DraftSession:
        if session_id not in self.sessions:
            raise UnknownSessionError("no session")
        session = self.sessions[session_id]
        if stamp.epoch != session.epoch or stamp <= session.stamp:
            raise StaleStampError("old")
        session.stamp = stamp
        return session

    def _num_held(self, session: _DraftSession) -> int:
        return session.num_pairs

    def _take(self, session: _DraftSession, pairs: Pairs) -> None:
        """Checks that every pair is f_t with x_{t+1}, as the log says."""
        self.num_appended += len(pairs.tokens)
        assert isinstance(pairs.features, RawTensor)
        rows = np.frombuffer(pairs.features.data, dtype="<i8").reshape(-1, 2).tolist()
        assert pairs.begin == session.num_pairs
        for offset, ((position, token), following) in enumerate(
            zip(rows, pairs.tokens, strict=True)
        ):
            assert position == pairs.begin + offset
            if not session.tokens:
                session.tokens.append(token)
            assert session.tokens[position] == token
            session.tokens.append(following)

    def _grow(self, session: _DraftSession, paths: list[list[int]], top_k: int) -> Level:
        tokens, logprobs, level = [], [], []
        for path in paths:
            children = self._children(session.tokens + path, top_k)
            tokens.append(children)
            logprobs.append([-0.1 - 0.5 * rank for rank in range(top_k)])
            level += [[*path, child] for child in children]
        session.level = level
        return Level(np.array(tokens, dtype=np.int64), np.array(logprobs, dtype=np.float32))

    def _children(self, prefix: list[int], top_k: int) -> list[int]:
        wish = zlib.crc32(repr(("draft", prefix)).encode())
        others = [2 + (wish + step) % (VOCAB_SIZE - 2) for step in range(top_k + 1)]
        right = hash_token(prefix, self.params)
        children = [token for token in others if token != right][:top_k]
        if wish % 1000 < 1000 * self.accuracy:
            rank = 0 if self.accuracy == 1.0 else wish % top_k
            children[rank] = right
        return children


class FakeLanguageModelDraft(FakeDraft):
    """A draft that is given committed tokens alone, each at its position, the root included."""

    def __init__(
        self,
        accuracy: float,
        hook: Hook = no_fault,
        params: SamplingParams | None = None,
        context_length: int = INFO.context_length,
    ) -> None:
        super().__init__(accuracy, hook, params)
        self.feature_spec = None
        self.info = replace(INFO, context_length=context_length)
        self.longest_extend = 0

    def _num_held(self, session: _DraftSession) -> int:
        return len(session.tokens)

    def _take(self, session: _DraftSession, pairs: Pairs) -> None:
        self.num_appended += len(pairs.tokens)
        assert pairs.features is None
        assert pairs.begin == len(session.tokens)
        session.tokens += pairs.tokens
        assert len(session.tokens) <= self.info.context_length
        self.longest_extend = max(self.longest_extend, len(pairs.tokens))


class FakeWorkers:
    """Gives the targets in turn and the draft while there is one."""

    def __init__(self, targets: list[FakeTarget], draft: FakeDraft | None) -> None:
        self.targets = targets
        self.live_draft = draft
        self.waits_for_room = 0

    async def target(
        self, avoid: TargetLink | None = None, full: Collection[TargetLink] = ()
    ) -> TargetLink:
        """Returns a target, another than `avoid` and those of `full` if there is one."""
        await asyncio.sleep(0)
        return min(self.targets, key=lambda one: (one in full, one is avoid))

    def draft(self) -> DraftLink | None:
        """Returns the draft."""
        return self.live_draft

    def moving(self) -> AbstractContextManager[None]:
        """Nobody else begins anything here."""
        return nullcontext()

    async def wait_for_room(self, error: ResourceExhaustedError) -> None:
        """Lets whatever else runs go on."""
        self.waits_for_room += 1
        await asyncio.sleep(0)
