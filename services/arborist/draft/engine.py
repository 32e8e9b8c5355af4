"""The EAGLE draft engine: true pairs, tree expansion and the KV of its sessions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from arborist.common.few_rows import FewRowsMatrix
from arborist.common.float_dtypes import FLOAT_DTYPES
from arborist.common.model_files import ModelFiles
from arborist.core.engine import (
    DraftOpen,
    DraftOutcome,
    DraftWork,
    Expand,
    ExpandTree,
    Extend,
    Extended,
    ModelInfo,
    SessionKey,
)
from arborist.core.errors import (
    ArboristError,
    InvalidArgumentError,
    SessionFailedError,
    UnknownSessionError,
)
from arborist.core.features import FeatureSpec
from arborist.core.noise_aim import NoiseAim
from arborist.core.shape import MAX_DEPTH, MAX_TOP_K
from arborist.core.tree import FloatArray, IntArray, Level
from arborist.draft.attention import Mask, PackedAttention, Span, causal_mask, no_scratch, tree_mask
from arborist.draft.checkpoint import Head, StoredHead, check_fit, check_tables, read_head
from arborist.draft.eagle3_head import Eagle3Head
from arborist.draft.feature_layers import feature_layers
from arborist.draft.frequent_vocabulary import keep_frequent
from arborist.draft.kv import KvPool, KvRegion
from arborist.draft.target_vocabulary import TargetVocabulary, load_target_vocabulary
from arborist.draft.tree_growth import TreeGrowth

SCRATCH_TOKENS = (MAX_DEPTH - 1) * MAX_TOP_K
"""KV positions every session keeps for the nodes of one tree: all levels that may be expanded."""


@dataclass(slots=True)
class _Tree:
    """The newest level of a session's tree.

    Attributes:
        level: Its candidates; the next Expand names some of them.
        states: The head's output at the nodes whose children the candidates are, (rows, H).
        mask: Additive, (rows, scratch nodes so far): which of them each of those nodes sees.
        num_levels: Levels so far; the root's children are level 1.
    """

    level: Level
    states: Tensor
    mask: Mask
    num_levels: int = 1


@dataclass(slots=True)
class _Session:
    """State of one session.

    Attributes:
        region: Its KV: num_pairs true pairs, then the scratch of the tree.
        max_length: Most pairs.
        aim: The target's noise; None = draft by the head's own probabilities.
        num_pairs: True pairs held.
        tree: None until an Extend has given level 1.
        extend_failed: Whether the last Extend changed nothing: `tree` is of a round before.
    """

    region: KvRegion
    max_length: int
    aim: NoiseAim | None = None
    num_pairs: int = 0
    tree: _Tree | None = None
    extend_failed: bool = False


@dataclass(frozen=True, slots=True)
class _Held:
    """What a session held before a batch."""

    session: _Session
    num_pairs: int
    tree: _Tree | None

    def put_back(self) -> None:
        """Makes the session hold this again."""
        self.session.num_pairs, self.session.tree = self.num_pairs, self.tree


@dataclass(slots=True)
class _Plan:
    """One checked item, as rows of the forward.

    Attributes:
        index: Place in the batch.
        work: The item.
        session: Its session.
        inputs: int64 (2, rows): token and draft position of each row.
        features: What each row is fed: the target's features, (rows, feature width), for true
            pairs, the head's own states, (rows, H), for nodes; the engine's device and dtype.
        span: Its rows and their KV.
    """

    index: int
    work: Extend | Expand
    session: _Session
    inputs: IntArray
    features: Tensor
    span: Span

    @property
    def level_rows(self) -> range:
        """Returns the packed rows whose children are wanted."""
        rows = self.span.rows
        if isinstance(self.work, Expand):
            return range(rows.start, rows.stop)
        return range(rows.stop - 1, rows.stop) if self.work.top_k else range(0)

    @property
    def drawn_position(self) -> int:
        """Returns the absolute index of the token that the wanted children are guesses of."""
        # Draft position p was fed token p + 1 (DESIGN §2.1), so what follows it is token p + 2.
        return int(self.inputs[1, -1]) + 2


class EagleDraftEngine:
    """An EAGLE head with its embedding and LM head: core.engine.DraftEngine.

    The lasting KV holds true pairs only (EAGLE-2 as the official code runs it): nodes of a tree
    are written behind them and forgotten at the next Extend. Called from one thread at a time.
    """

    def __init__(
        self,
        head: Head,
        embed_tokens: Tensor,
        lm_head: Tensor,
        info: ModelInfo,
        kv_capacity_tokens: int,
        *,
        token_ids: Tensor | None = None,
        feature_spec: FeatureSpec | None = None,
    ) -> None:
        """Allocates the KV.

        Args:
            head: On its device, in its dtype.
            embed_tokens: (V, H), same device and dtype.
            lm_head: (Vd, H), same device and dtype; Vd = V without token_ids.
            info: What is loaded.
            kv_capacity_tokens: KV positions of all sessions together; a session takes its
                max_length and SCRATCH_TOKENS.
            token_ids: The target's id of each row of lm_head, int64; None = its own number.
            feature_spec: Features of the target; None = the state after the final norm.
        """
        self._head = head.eval()
        self._head.prepare_for_inference()
        self._embed_tokens = embed_tokens
        self._project = _projection(lm_head)
        self._num_draft_ids = lm_head.shape[0]
        self._token_ids = None if token_ids is None else token_ids.numpy(force=True)
        known_ids = torch.arange(lm_head.shape[0]) if token_ids is None else token_ids
        self._noise_ids = known_ids.to(lm_head.device)  # [Vd]; noise is of the target's id.
        self._feature_spec = feature_spec or FeatureSpec()
        self._info = info
        self._device = lm_head.device
        self._dtype = lm_head.dtype
        self._kv = KvPool(head.config, kv_capacity_tokens, self._device, self._dtype)
        self._sessions: dict[SessionKey, _Session] = {}

    @property
    def info(self) -> ModelInfo:
        """Returns what is loaded."""
        return self._info

    @property
    def feature_spec(self) -> FeatureSpec | None:
        """Returns the state after the final norm, or an EAGLE-3 head's layers."""
        return self._feature_spec

    @property
    def feature_width(self) -> int:
        """Returns the width of a feature row."""
        return self._head.feature_width

    @property
    def kv_capacity_tokens(self) -> int:
        """Returns all KV positions."""
        return self._kv.capacity

    @property
    def kv_reserved_tokens(self) -> int:
        """Returns KV positions reserved by sessions."""
        return self._kv.reserved

    @property
    def num_sessions(self) -> int:
        """Returns the open sessions."""
        return len(self._sessions)

    def open(self, session: SessionKey, request: DraftOpen) -> int:
        """Reserves KV; opening an open session drops its old state.

        Returns:
            Positions reserved, in tokens: max_length and the scratch of one tree.
        Raises:
            ResourceExhaustedError: It does not fit now.
            InvalidArgumentError: max_length is below 1, or would not fit into an empty pool.
        """
        if request.max_length < 1:
            raise InvalidArgumentError("max_length", request.max_length, "at least 1")
        self.release(session)
        region = self._kv.reserve(request.max_length + SCRATCH_TOKENS)
        self._head.rotary.reserve(request.max_length + MAX_DEPTH)
        self._sessions[session] = _Session(region, request.max_length, request.aim)
        return region.length

    def release(self, session: SessionKey) -> None:
        """Frees everything of the session; unknown sessions are no error."""
        state = self._sessions.pop(session, None)
        if state is not None:
            self._kv.free(state.region)

    def tree(self, session: SessionKey) -> object:
        """Returns the session's tree as it is now; None = none. Later levels leave it unchanged."""
        state = self._sessions.get(session)
        return None if state is None else state.tree

    def put_back(self, session: SessionKey, tree: object) -> None:
        """Makes an earlier tree of the same round the session's tree again.

        Its scratch is what comes first behind the pairs, which later levels did not touch.

        Args:
            session: Whose tree.
            tree: What `tree` returned since the last Extend.
        """
        state = self._sessions.get(session)
        if state is not None:
            state.tree = cast("_Tree | None", tree)

    def warm_up(self) -> None:
        """Runs a small tree once in a session of its own, so that no client pays for first calls.

        Raises:
            ArboristError: It did not work; the worker must not serve.
        """
        session = ("arborist", "warm-up")
        top_k = min(8, self._num_draft_ids)
        self.open(session, DraftOpen(max_length=8))
        try:
            features = torch.zeros((2, self.feature_width), dtype=self._dtype)
            extend = Extend(session, 0, [0, 0], features, top_k)
            for work in (extend, ExpandTree(session, "eagle2", 2, top_k)):
                (outcome,) = self.run([work])
                if isinstance(outcome, ArboristError):
                    raise outcome
        finally:
            self.release(session)

    def check_integrity(self) -> None:
        """Checks what must hold between two batches; meant for idle moments.

        Raises:
            RuntimeError: KV regions overlap, do not add up, or hold more than they may.
        """
        self._kv.check_integrity()
        held = sum(state.region.length for state in self._sessions.values())
        if held != self._kv.reserved:
            raise RuntimeError(f"draft KV reserves {self._kv.reserved}, sessions hold {held}")
        for key, state in self._sessions.items():
            scratch = 0 if state.tree is None else state.tree.mask.shape[1]
            if state.num_pairs > state.max_length or scratch > SCRATCH_TOKENS:
                raise RuntimeError(
                    f"draft session {key} holds {state.num_pairs} pairs and {scratch} nodes"
                )

    def run(self, batch: Sequence[DraftWork]) -> list[DraftOutcome]:
        """Runs any mix of work, at most one item per session: one forward, more for an ExpandTree.

        Everything is checked before a forward, and sessions change only after it.

        Args:
            batch: The items.
        Returns:
            One outcome per item, in order: a Level, a Pool for an ExpandTree, Extended for an
            Extend without level, or an error, which concerns that item alone. After an error the
            session holds the pairs it held; after SessionFailedError of an Extend its tree is
            gone too, and after any error of an Extend no ExpandTree is taken.
        """
        if any(isinstance(work, ExpandTree) for work in batch):
            return self._run_trees(batch)
        return self._run_forward([work for work in batch if not isinstance(work, ExpandTree)])

    def _run_trees(self, batch: Sequence[DraftWork]) -> list[DraftOutcome]:
        """Grows all pools together, a level per forward; other items go with the first one."""
        outcomes: list[DraftOutcome | None] = [None] * len(batch)
        growths: dict[int, TreeGrowth] = {}
        step: dict[int, Extend | Expand] = {}  # The next forward, by place in the batch.
        ended = time.perf_counter()
        before = {index: held for index, work in enumerate(batch) if (held := self._held(work))}
        for index, work in enumerate(batch):
            if not isinstance(work, ExpandTree):
                step[index] = work
                continue
            try:
                growths[index] = self._begin_growth(work)
                _advance(index, growths[index], step, outcomes)
            except ArboristError as error:
                outcomes[index] = error
        try:
            while step:
                results = self._run_forward(list(step.values()))
                since, ended = ended, time.perf_counter()
                compute_ms = (ended - since) * 1e3
                answers, step = dict(zip(step, results, strict=True)), {}
                for index, answer in answers.items():
                    growth = growths.get(index)
                    if growth is None or not isinstance(answer, Level):
                        outcomes[index] = answer
                    else:
                        growth.grow(answer, compute_ms)
                        _advance(index, growth, step, outcomes)
        except BaseException:
            # Whoever runs the items again one by one must find all sessions as they were.
            for held in before.values():
                held.put_back()
            raise
        for index in growths:
            if isinstance(outcomes[index], ArboristError):
                before[index].put_back()
        return [outcome for outcome in outcomes if outcome is not None]

    def _held(self, work: DraftWork) -> _Held | None:
        session = self._sessions.get(work.session)
        if session is None:
            return None
        # An Extend writes over the scratch of the tree before it.
        tree = None if isinstance(work, Extend) else session.tree
        return _Held(session, session.num_pairs, tree)

    def _begin_growth(self, work: ExpandTree) -> TreeGrowth:
        session = self._session(work)
        tree = session.tree
        if tree is None or tree.num_levels != 1 or session.extend_failed:
            held = 0 if tree is None or session.extend_failed else tree.num_levels
            raise InvalidArgumentError("levels", held, "1, sent right behind its Extend")
        self._check_top_k(work.top_k)
        return TreeGrowth(work, tree.level)

    def _run_forward(self, batch: Sequence[Extend | Expand]) -> list[DraftOutcome]:
        outcomes: list[DraftOutcome | None] = [None] * len(batch)
        plans: list[_Plan] = []
        taken: set[SessionKey] = set()
        with torch.inference_mode():
            for index, work in enumerate(batch):
                try:
                    if work.session in taken:
                        raise InvalidArgumentError("session", "repeated", "once in a batch")
                    plans.append(self._plan(index, work))
                    taken.add(work.session)
                except ArboristError as error:
                    outcomes[index] = error
            if plans:
                states = self._forward(plans)
                for plan, outcome in zip(plans, self._finish(plans, states), strict=True):
                    outcomes[plan.index] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def _session(self, work: DraftWork) -> _Session:
        session = self._sessions.get(work.session)
        if session is None:
            raise UnknownSessionError("the draft has no such session: open it and extend it again")
        return session

    def _plan(self, index: int, work: Extend | Expand) -> _Plan:
        session = self._session(work)
        if isinstance(work, Expand):
            return self._plan_expand(index, work, session)
        session.extend_failed = True  # Until its forward is through.
        return self._plan_extend(index, work, session)

    def _plan_extend(self, index: int, work: Extend, session: _Session) -> _Plan:
        count = len(work.tokens)
        if not count:
            raise InvalidArgumentError("tokens", 0, "at least one pair")
        if work.begin != session.num_pairs:
            raise InvalidArgumentError("begin", work.begin, f"the pairs held, {session.num_pairs}")
        if work.begin + count > session.max_length:
            raise InvalidArgumentError(
                "tokens", count, f"at most {session.max_length - work.begin} more of max_length"
            )
        if work.top_k:
            self._check_top_k(work.top_k)
        vocab_size = self._info.vocab_size
        if min(work.tokens) < 0 or max(work.tokens) >= vocab_size:
            worst = min(work.tokens) if min(work.tokens) < 0 else max(work.tokens)
            raise InvalidArgumentError("tokens", worst, f"in [0, {vocab_size})")
        positions = np.arange(work.begin, work.begin + count)
        return _Plan(
            index,
            work,
            session,
            np.stack((np.asarray(work.tokens, dtype=np.int64), positions)),
            self._take_features(work),
            Span(session.region, work.begin, count, causal_mask(count)),
        )

    def _take_features(self, work: Extend) -> Tensor:
        features = work.features
        if features is None:
            raise InvalidArgumentError("features", "none", "one row per token")
        shape = (len(work.tokens), self.feature_width)
        if tuple(features.shape) != shape:
            raise InvalidArgumentError("features", tuple(features.shape), f"of shape {shape}")
        if features.dtype not in FLOAT_DTYPES.values():
            raise InvalidArgumentError("features", features.dtype, f"one of {list(FLOAT_DTYPES)}")
        # They are finite, whoever received or computed them has seen to that; but what is finite in
        # fp32 may overflow fp16. Looked at before the copy to the device: nothing waits for one.
        converted = features.to(self._dtype)
        narrower = torch.finfo(self._dtype).max < torch.finfo(features.dtype).max
        if narrower and not bool(converted.isfinite().all()):
            raise InvalidArgumentError("features", "NaN or infinite", "finite")
        return converted.to(self._device)

    def _plan_expand(self, index: int, work: Expand, session: _Session) -> _Plan:
        tree = session.tree
        if tree is None:
            raise InvalidArgumentError("rows", len(work.rows), "sent after a level was returned")
        if tree.num_levels >= MAX_DEPTH:
            raise InvalidArgumentError("levels", tree.num_levels + 1, f"at most {MAX_DEPTH}")
        self._check_top_k(work.top_k)
        count, candidates = len(work.rows), tree.level.tokens.size
        if not 1 <= count <= MAX_TOP_K:
            raise InvalidArgumentError("rows", count, f"between 1 and {MAX_TOP_K} of them")
        if min(work.rows) < 0 or max(work.rows) >= candidates:
            worst = min(work.rows) if min(work.rows) < 0 else max(work.rows)
            raise InvalidArgumentError("rows", worst, f"in [0, {candidates})")
        if len(set(work.rows)) != count:
            raise InvalidArgumentError("rows", "repeated", "distinct")
        rows = np.asarray(work.rows)
        parents = rows // tree.level.tokens.shape[1]
        features = tree.states.index_select(0, torch.from_numpy(parents).to(self._device))
        # Level i (0-based) stands at position pairs + i, all its nodes alike (EAGLE-2, code).
        position = session.num_pairs + tree.num_levels - 1
        tokens = tree.level.tokens.reshape(-1)[rows]
        kv_begin = session.num_pairs + tree.mask.shape[1]
        return _Plan(
            index,
            work,
            session,
            np.stack((tokens, np.full(count, position))),
            features,
            Span(session.region, kv_begin, count, tree_mask(tree.mask, parents)),
        )

    def _check_top_k(self, top_k: int) -> None:
        limit = min(MAX_TOP_K, self._num_draft_ids)
        if not 1 <= top_k <= limit:
            raise InvalidArgumentError("top_k", top_k, f"in [1, {limit}]")

    def _forward(self, plans: list[_Plan]) -> Tensor:
        """Runs the head over the packed rows of all plans; returns its states, (R, H)."""
        begin = 0
        for plan in plans:
            plan.span.first_row = begin
            begin += plan.span.num_rows
            if isinstance(plan.work, Extend):
                plan.session.tree = None  # Its scratch is about to be written over.
        packed = np.concatenate([plan.inputs for plan in plans], axis=1)
        tokens, positions = torch.from_numpy(packed).to(self._device)  # [R], [R]
        attention = PackedAttention(self._kv, [plan.span for plan in plans])
        states: Tensor = self._head(
            F.embedding(tokens, self._embed_tokens), self._fed(plans), positions, attention.attend
        )
        return states

    def _fed(self, plans: list[_Plan]) -> Tensor:
        """Returns what the head is fed, (R, H): features are fused, its own states are not."""
        true = [plan.features for plan in plans if isinstance(plan.work, Extend)]
        if not true:
            return _joined([plan.features for plan in plans])
        fused = self._head.fuse(_joined(true))
        if len(true) == len(plans):
            return fused
        parts = iter(torch.split_with_sizes(fused, [len(part) for part in true]))
        return torch.cat(
            [next(parts) if isinstance(plan.work, Extend) else plan.features for plan in plans]
        )

    def _finish(self, plans: list[_Plan], states: Tensor) -> list[DraftOutcome]:
        """Turns states into levels and lets the sessions change."""
        levels = self._levels(plans, states)
        outcomes: list[DraftOutcome] = []
        for plan in plans:
            level = levels.get(plan.index)
            if level is not None and not bool(np.isfinite(level[1]).all()):
                outcomes.append(SessionFailedError("the draft's log-probs are not finite"))
                continue
            outcomes.append(_commit(plan, states, None if level is None else Level(*level)))
        return outcomes

    def _levels(self, plans: list[_Plan], states: Tensor) -> dict[int, tuple[IntArray, FloatArray]]:
        """Returns tokens and log-probs, each (rows, top_k), of the plans that want a level."""
        wanted = [plan for plan in plans if len(plan.level_rows)]
        if not wanted:
            return {}
        rows = [row for plan in wanted for row in plan.level_rows]
        if len(rows) < states.shape[0]:
            states = states.index_select(0, torch.tensor(rows).to(self._device))
        logits = self._project(self._head.readout(states)).float()  # [R, Vd]
        logprobs = F.log_softmax(self._aimed(wanted, logits), dim=-1)
        found: dict[int, tuple[IntArray, FloatArray]] = {}
        # One top-k per width: a wider one may break ties at the cut another way.
        for top_k in sorted({plan.work.top_k for plan in wanted}):
            best = logprobs.topk(top_k, dim=-1)  # [R, k]
            ids = best.indices.cpu().numpy()
            if self._token_ids is not None:
                ids = self._token_ids[ids]
            tokens, values = _order_ties(ids, best.values.cpu().numpy())
            begin = 0
            for plan in wanted:
                end = begin + len(plan.level_rows)
                if plan.work.top_k == top_k:
                    found[plan.index] = tokens[begin:end], values[begin:end]
                begin = end
        return found

    def _aimed(self, plans: list[_Plan], logits: Tensor) -> Tensor:
        """Adds the target's noise to the rows, (R, Vd), of sessions that were told of it."""
        begin = 0
        for plan in plans:
            end = begin + len(plan.level_rows)
            if plan.session.aim is not None:
                logits[begin:end] = plan.session.aim.aimed(
                    logits[begin:end], plan.drawn_position, self._noise_ids
                )
            begin = end
        return logits


def _advance(
    index: int,
    growth: TreeGrowth,
    step: dict[int, Extend | Expand],
    outcomes: list[DraftOutcome | None],
) -> None:
    """Puts the growth's next Expand into the next forward, or its pool among the outcomes."""
    work = growth.next_work
    if work is None:
        outcomes[index] = growth.pool
    else:
        step[index] = work


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _commit(plan: _Plan, states: Tensor, level: Level | None) -> DraftOutcome:
    session, rows = plan.session, plan.span.rows
    if isinstance(plan.work, Extend):
        session.num_pairs += plan.span.num_rows
        session.extend_failed = False
        if level is None:
            return Extended(session.num_pairs)
        # The clones let go of the other rows of the forward.
        session.tree = _Tree(level, states[rows.stop - 1 : rows.stop].clone(), no_scratch())
        return level
    if session.tree is None or plan.span.mask is None or level is None:
        raise RuntimeError("an Expand needs a tree and gives a level")
    depth = session.tree.num_levels + 1
    session.tree = _Tree(level, states[rows].clone(), plan.span.mask, depth)
    return level


def _order_ties(tokens: IntArray, values: FloatArray) -> tuple[IntArray, FloatArray]:
    """Orders every row by (value descending, token ascending); ties are rare, so looked for."""
    if not bool((values[:, 1:] == values[:, :-1]).any()):
        return tokens, values
    order = np.lexsort((tokens, -values), axis=-1)
    return np.take_along_axis(tokens, order, -1), np.take_along_axis(values, order, -1)


def load_draft(
    head_path: str | Path,
    target_path: str | Path,
    *,
    device: str | torch.device,
    dtype: str | torch.dtype,
    kv_capacity_tokens: int,
    revision: str | None = None,
    target_revision: str | None = None,
    name: str | None = None,
    token_ids: Sequence[int] | None = None,
) -> EagleDraftEngine:
    """Loads a head and what it borrows from its target: embedding and LM head only.

    Args:
        head_path: Folder or hub name of the head.
        target_path: Folder or hub name of the target.
        device: "cpu" or "cuda:N".
        dtype: float32, bfloat16 or float16.
        kv_capacity_tokens: KV positions of all sessions together.
        revision: Revision of a hub head.
        target_revision: Revision of a hub target.
        name: Served name; the last part of head_path unless given.
        token_ids: Draft these of the target's ids only (FR-Spec); None = all.
    Raises:
        InvalidArgumentError: No such model, an unknown dtype, or ids that do not fit.
        MismatchError: The head is broken, of another format, or belongs to another target; names
            the tensor.
    """
    torch_dtype = _checked_dtype(dtype)
    files = ModelFiles(head_path, revision)
    stored = read_head(files, torch_dtype)
    target = load_target_vocabulary(target_path, revision=target_revision)
    check_fit(stored.head, target)
    check_tables(stored, target)
    if token_ids is not None:
        stored = keep_frequent(stored, token_ids, target.vocab_size)
    place = torch.device(device)
    lm_head = _lm_head(stored, target).to(place, torch_dtype)
    embed_tokens = _embedding(stored, target, lm_head)
    head = stored.head.to(place)
    num_tables = lm_head.numel() + (0 if embed_tokens is lm_head else embed_tokens.numel())
    info = ModelInfo(
        name=name or Path(head_path).name,
        digest=files.digest(),
        vocab_size=target.vocab_size,
        hidden_size=target.hidden_size,
        num_layers=head.config.num_layers,
        context_length=target.context_length,
        num_parameters=sum(one.numel() for one in head.parameters()) + num_tables,
        dtype=str(torch_dtype).removeprefix("torch."),
        eos_token_ids=target.eos_token_ids,
        embedding_digest=target.embedding_digest,
    )
    return EagleDraftEngine(
        head,
        embed_tokens,
        lm_head,
        info,
        kv_capacity_tokens,
        token_ids=stored.token_ids,
        feature_spec=_feature_spec(head, target),
    )


def _checked_dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = FLOAT_DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in FLOAT_DTYPES.values():
        raise InvalidArgumentError("dtype", dtype, f"one of {list(FLOAT_DTYPES)}")
    return found


def _feature_spec(head: Head, target: TargetVocabulary) -> FeatureSpec:
    if isinstance(head, Eagle3Head):
        return FeatureSpec(feature_layers(head.fusion, target.num_layers))
    return FeatureSpec()


def _projection(lm_head: Tensor) -> Callable[[Tensor], Tensor]:
    if lm_head.device.type == "cpu":
        return FewRowsMatrix(lm_head)
    return partial(F.linear, weight=lm_head)


def _lm_head(stored: StoredHead, target: TargetVocabulary) -> Tensor:
    """Returns the head's own LM head if it has one, else the target's rows of its vocabulary."""
    if stored.lm_head is not None:
        return stored.lm_head
    if stored.token_ids is not None:
        return target.lm_head[stored.token_ids]
    return target.lm_head


def _embedding(stored: StoredHead, target: TargetVocabulary, lm_head: Tensor) -> Tensor:
    """Returns the table the head embeds with: its own copy if it has one, else the target's."""
    own = stored.embed_tokens
    table = target.embed_tokens if own is None else own.to(target.embed_tokens.dtype)
    borrows_all = stored.lm_head is None and stored.token_ids is None
    tied = borrows_all and target.lm_head is target.embed_tokens
    if tied and torch.equal(table, target.embed_tokens):
        return lm_head  # Tied: one table serves both ends.
    return table.to(lm_head.device, lm_head.dtype)
