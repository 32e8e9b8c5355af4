"""What every draft engine does: committed rows, tree expansion and the KV of its sessions."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

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
from arborist.core.prefix import Prefix, PrefixCounts
from arborist.core.shape import MAX_DEPTH, MAX_TOP_K
from arborist.core.tree import FloatArray, IntArray, Level
from arborist.draft.attention import Mask, Span, causal_mask, no_scratch, tree_mask
from arborist.draft.kv import KvPool, KvRegion
from arborist.draft.prefix_cache import PrefixCache
from arborist.draft.tree_growth import TreeGrowth

SCRATCH_TOKENS = (MAX_DEPTH - 1) * MAX_TOP_K
"""KV positions every session keeps for the nodes of one tree: all levels that may be expanded."""


@dataclass(slots=True)
class _Tree:
    """The newest level of a session's tree.

    Attributes:
        level: Its candidates; the next Expand names some of them.
        states: The head's output at the nodes whose children the candidates are, (rows, H); None
            for a language model, which is fed tokens alone.
        mask: Additive, (rows, scratch nodes so far): which of them each of those nodes sees.
        num_levels: Levels so far; the root's children are level 1.
    """

    level: Level
    states: Tensor | None
    mask: Mask
    num_levels: int = 1


@dataclass(slots=True)
class _Session:
    """State of one session.

    Attributes:
        region: Its KV: what is committed, then the scratch of the tree.
        max_length: Most pairs, or tokens of a language model.
        aim: The target's noise; None = draft by the model's own probabilities.
        num_pairs: True pairs held; committed tokens held by a language model.
        tree: None until an Extend has given level 1.
        extend_failed: Whether the last Extend changed nothing: `tree` is of a round before.
        tokens: The newest token that each row held depends on.
        scope: With whom it shares what it holds, and what comes before the first of the tokens;
            None = with nobody.
        num_reused: Rows taken over from earlier sessions.
    """

    region: KvRegion
    max_length: int
    aim: NoiseAim | None = None
    num_pairs: int = 0
    tree: _Tree | None = None
    extend_failed: bool = False
    tokens: list[int] = field(default_factory=list)
    scope: tuple[str, tuple[int, ...]] | None = None
    num_reused: int = 0


@dataclass(frozen=True, slots=True)
class _Held:
    """What a session held before a batch."""

    session: _Session
    num_pairs: int
    tree: _Tree | None

    def put_back(self) -> None:
        """Makes the session hold this again."""
        self.session.num_pairs, self.session.tree = self.num_pairs, self.tree
        del self.session.tokens[self.num_pairs :]


@dataclass(slots=True)
class DraftPlan:
    """One checked item, as rows of the forward.

    Attributes:
        index: Place in the batch.
        work: The item.
        session: Its session.
        inputs: int64 (2, rows): token and draft position of each row.
        features: What each row of a head is fed: the target's features, (rows, feature width), for
            true pairs, the head's own states, (rows, H), for nodes; the engine's device and dtype.
        span: Its rows and their KV.
    """

    index: int
    work: Extend | Expand
    session: _Session
    inputs: IntArray
    features: Tensor | None
    span: Span

    @property
    def level_rows(self) -> range:
        """Returns the packed rows whose children are wanted."""
        rows = self.span.rows
        if isinstance(self.work, Expand):
            return range(rows.start, rows.stop)
        return range(rows.stop - 1, rows.stop) if self.work.top_k else range(0)


@dataclass(frozen=True, slots=True)
class DraftForward:
    """What a model gave for the packed rows of a forward.

    Attributes:
        logits: (level rows, drafted ids), of the rows whose children are wanted.
        states: (R, H), fed back to a head; None for a language model.
    """

    logits: Tensor
    states: Tensor | None = None


class TreeDraftEngine(ABC):
    """Sessions, levels and trees of a draft model: core.engine.DraftEngine.

    The lasting KV holds what is committed only (EAGLE-2 as the official code runs it): nodes of a
    tree are written behind it and forgotten at the next Extend. Which model runs over the rows is
    a subclass's business. Called from one thread at a time.

    A head is extended by pairs (feature f_t, token x_{t+1}): one pair fewer than committed tokens.
    A language model is extended by the tokens themselves, the root included: its level 1 is what
    follows the root. Either way the first level stands at the first position not held.
    """

    def __init__(
        self,
        info: ModelInfo,
        kv: KvPool,
        num_draft_ids: int,
        *,
        device: torch.device,
        token_ids: Tensor | None = None,
        num_known_ids: int | None = None,
    ) -> None:
        """Joins what every draft has.

        Args:
            info: What is loaded.
            kv: KV of all sessions; a session takes what it may hold and SCRATCH_TOKENS.
            num_draft_ids: Token ids that can be drafted.
            device: Where the model runs.
            token_ids: The target's id of each drafted id, int64; None = its own number.
            num_known_ids: Token ids that the model can be fed; None = all of the target's.
        """
        self._info = info
        self._kv = kv
        self._num_draft_ids = num_draft_ids
        self._num_known_ids = num_known_ids or info.vocab_size
        self._device = device
        self._token_ids = None if token_ids is None else token_ids.numpy(force=True)
        known_ids = torch.arange(num_draft_ids) if token_ids is None else token_ids
        self._noise_ids = known_ids.to(device)  # [Vd]; noise is of the target's id.
        self._sessions: dict[SessionKey, _Session] = {}
        self._prefixes: PrefixCache | None = None

    def share_prefixes(self, capacity: int) -> None:
        """Lets sessions take over what earlier ones that begin alike have left.

        Args:
            capacity: Rows kept, in tokens; memory of their own, beside the KV of sessions.
        """
        self._prefixes = PrefixCache(self._kv, capacity)

    @property
    def info(self) -> ModelInfo:
        """Returns what is loaded."""
        return self._info

    @property
    @abstractmethod
    def feature_spec(self) -> FeatureSpec | None:
        """Returns the features of the target that are read; None for a language model."""

    @property
    @abstractmethod
    def feature_width(self) -> int:
        """Returns the width of a feature row; 0 for a language model."""

    @property
    @abstractmethod
    def _token_shift(self) -> int:
        """Returns how far the token that a row is fed lies behind the row's draft position."""

    @abstractmethod
    def _features_of(self, work: Extend) -> Tensor | None:
        """Returns the features of an Extend as the model reads them; None if it reads none.

        Raises:
            InvalidArgumentError: They are not what the model needs.
        """

    @abstractmethod
    def _forward(self, plans: list[DraftPlan], inputs: IntArray) -> DraftForward:
        """Runs the model over the packed rows of all plans and writes their KV.

        Args:
            plans: In packed order.
            inputs: (2, R): token and draft position of each row.
        Returns:
            Logits of `level_rows` of every plan, in order, and states of all rows.
        """

    @property
    def kv_capacity_tokens(self) -> int:
        """Returns all KV positions."""
        return self._kv.capacity

    @property
    def kv_reserved_tokens(self) -> int:
        """Returns KV positions reserved by sessions."""
        return self._kv.reserved

    @property
    def num_draft_ids(self) -> int:
        """Returns the token ids that can be drafted: the bound of every top_k."""
        return self._num_draft_ids

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
        longest = self._longest(request.max_length)
        region = self._kv.reserve(longest + SCRATCH_TOKENS)
        state = self._sessions[session] = _Session(region, longest, request.aim)
        if request.prefix is not None and self._prefixes is not None:
            self._take_over(state, request.prefix, self._prefixes)
        return region.length

    def _take_over(self, state: _Session, prefix: Prefix, prefixes: PrefixCache) -> None:
        before, tokens = prefix.tokens[: self._token_shift], prefix.tokens[self._token_shift :]
        if len(before) < self._token_shift:
            return  # What the first row depends on is not known.
        state.scope = (prefix.scope, before)
        tokens = tokens[: state.max_length]
        state.num_reused = prefixes.take_over(state.scope, tokens, state.region)
        state.num_pairs = state.num_reused
        state.tokens.extend(tokens[: state.num_reused])

    def num_reused(self, session: SessionKey) -> int:
        """Returns the rows that a session took over when it was opened."""
        state = self._sessions.get(session)
        return 0 if state is None else state.num_reused

    def keep(self, session: SessionKey) -> None:
        """Leaves what a session holds to those that begin alike; it may then be released.

        Does nothing for an unknown session or one that shares nothing.
        """
        state = self._sessions.get(session)
        if state is not None and state.scope is not None and self._prefixes is not None:
            self._prefixes.keep(state.scope, state.tokens, state.region)

    @property
    def prefix_counts(self) -> PrefixCounts:
        """Returns what the prefix cache did so far; zeros when there is none."""
        return PrefixCounts() if self._prefixes is None else self._prefixes.counts

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
            features = None
            if self.feature_spec is not None:
                features = torch.zeros((2, self.feature_width))
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
        if self._prefixes is not None:
            self._prefixes.check_integrity()
        held = sum(state.region.length for state in self._sessions.values())
        if held != self._kv.reserved:
            raise RuntimeError(f"draft KV reserves {self._kv.reserved}, sessions hold {held}")
        for key, state in self._sessions.items():
            scratch = 0 if state.tree is None else state.tree.mask.shape[1]
            if len(state.tokens) != state.num_pairs:
                raise RuntimeError(
                    f"draft session {key} holds {state.num_pairs} pairs, {len(state.tokens)} tokens"
                )
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
            gone too, and after any error of an Extend no ExpandTree is taken. A session with a
            SessionFailedError shares nothing any more.
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
        plans: list[DraftPlan] = []
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
                forward = self._run_model(plans)
                for plan, outcome in zip(plans, self._finish(plans, forward), strict=True):
                    outcomes[plan.index] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def _session(self, work: DraftWork) -> _Session:
        session = self._sessions.get(work.session)
        if session is None:
            raise UnknownSessionError("the draft has no such session: open it and extend it again")
        return session

    def _plan(self, index: int, work: Extend | Expand) -> DraftPlan:
        session = self._session(work)
        if isinstance(work, Expand):
            return self._plan_expand(index, work, session)
        session.extend_failed = True  # Until its forward is through.
        return self._plan_extend(index, work, session)

    def _plan_extend(self, index: int, work: Extend, session: _Session) -> DraftPlan:
        count = len(work.tokens)
        if not count:
            raise InvalidArgumentError("tokens", 0, "at least one")
        if work.begin != session.num_pairs:
            raise InvalidArgumentError("begin", work.begin, f"the pairs held, {session.num_pairs}")
        if work.begin + count > session.max_length:
            raise InvalidArgumentError(
                "tokens", count, f"at most {session.max_length - work.begin} more of max_length"
            )
        if work.top_k:
            self._check_top_k(work.top_k)
        vocab_size = self._num_known_ids
        if min(work.tokens) < 0 or max(work.tokens) >= vocab_size:
            worst = min(work.tokens) if min(work.tokens) < 0 else max(work.tokens)
            raise InvalidArgumentError("tokens", worst, f"in [0, {vocab_size})")
        positions = np.arange(work.begin, work.begin + count)
        return DraftPlan(
            index,
            work,
            session,
            np.stack((np.asarray(work.tokens, dtype=np.int64), positions)),
            self._features_of(work),
            Span(session.region, work.begin, count, causal_mask(count)),
        )

    def _plan_expand(self, index: int, work: Expand, session: _Session) -> DraftPlan:
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
        features = None
        if tree.states is not None:
            features = tree.states.index_select(0, torch.from_numpy(parents).to(self._device))
        # Level i (0-based) stands at position pairs + i, all its nodes alike (EAGLE-2, code).
        position = session.num_pairs + tree.num_levels - 1
        tokens = tree.level.tokens.reshape(-1)[rows]
        kv_begin = session.num_pairs + tree.mask.shape[1]
        return DraftPlan(
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

    def _longest(self, max_length: int) -> int:
        """Returns how much a session may hold whose committed sequence gets this long."""
        return max_length

    def _run_model(self, plans: list[DraftPlan]) -> DraftForward:
        begin = 0
        for plan in plans:
            plan.span.first_row = begin
            begin += plan.span.num_rows
            if isinstance(plan.work, Extend):
                plan.session.tree = None  # Its scratch is about to be written over.
        return self._forward(plans, np.concatenate([plan.inputs for plan in plans], axis=1))

    def _finish(self, plans: list[DraftPlan], forward: DraftForward) -> list[DraftOutcome]:
        """Turns logits into levels and lets the sessions change."""
        levels = self._levels(plans, forward.logits)
        outcomes: list[DraftOutcome] = []
        for plan in plans:
            level = levels.get(plan.index)
            broken = _what_is_not_finite(plan, forward.states, level)
            if broken is not None:
                plan.session.scope = None  # What it holds is doubtful: nobody takes it over.
                outcomes.append(SessionFailedError(f"the draft's {broken} are not finite"))
                continue
            outcomes.append(_commit(plan, forward.states, None if level is None else Level(*level)))
        return outcomes

    def _levels(
        self, plans: list[DraftPlan], logits: Tensor
    ) -> dict[int, tuple[IntArray, FloatArray]]:
        """Returns tokens and log-probs, each (rows, top_k), of the plans that want a level."""
        wanted = [plan for plan in plans if len(plan.level_rows)]
        if not wanted:
            return {}
        logprobs = F.log_softmax(self._aimed(wanted, logits.float()), dim=-1)  # [R, Vd]
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

    def _aimed(self, plans: list[DraftPlan], logits: Tensor) -> Tensor:
        """Adds the target's noise to the rows, (R, Vd), of sessions that were told of it."""
        begin = 0
        for plan in plans:
            end = begin + len(plan.level_rows)
            if plan.session.aim is not None:
                # What follows the token of a row is drawn at the next position.
                drawn_at = int(plan.inputs[1, -1]) + self._token_shift + 1
                logits[begin:end] = plan.session.aim.aimed(
                    logits[begin:end], drawn_at, self._noise_ids
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


def _what_is_not_finite(
    plan: DraftPlan, states: Tensor | None, level: tuple[IntArray, FloatArray] | None
) -> str | None:
    """Returns what of a plan's results is NaN or infinite; None = nothing."""
    if level is not None:
        return None if bool(np.isfinite(level[1]).all()) else "log-probs"
    if states is None or bool(states[plan.span.rows].isfinite().all()):
        return None
    return "states"


def _commit(plan: DraftPlan, states: Tensor | None, level: Level | None) -> DraftOutcome:
    session, rows = plan.session, plan.span.rows
    if isinstance(plan.work, Extend):
        session.num_pairs += plan.span.num_rows
        session.tokens += plan.work.tokens
        session.extend_failed = False
        if level is None:
            return Extended(session.num_pairs)
        root = slice(rows.stop - 1, rows.stop)
        session.tree = _Tree(level, _copied(states, root), no_scratch())
        return level
    if session.tree is None or plan.span.mask is None or level is None:
        raise RuntimeError("an Expand needs a tree and gives a level")
    depth = session.tree.num_levels + 1
    session.tree = _Tree(level, _copied(states, rows), plan.span.mask, depth)
    return level


def _copied(states: Tensor | None, rows: slice) -> Tensor | None:
    # A copy lets go of the other rows of the forward.
    return None if states is None else states[rows].clone()


def _order_ties(tokens: IntArray, values: FloatArray) -> tuple[IntArray, FloatArray]:
    """Orders every row by (value descending, token ascending); ties are rare, so looked for."""
    if not bool((values[:, 1:] == values[:, :-1]).any()):
        return tokens, values
    order = np.lexsort((tokens, -values), axis=-1)
    return np.take_along_axis(tokens, order, -1), np.take_along_axis(values, order, -1)
