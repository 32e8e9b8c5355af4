"""The decode loop: prefill, then draft → rerank → verify → commit until the output ends.

Reads like EAGLE-2 §4. Knows workers only through links; gRPC and Ray are elsewhere. A draft that
fails costs its session nothing but speed; a target that fails is replaced by prefilling the
committed log elsewhere. Either way the tokens are the same, because the target's token at a
position is a function of prompt, parameters and seed (DESIGN §2).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass

from arborist.core.engine import DraftOpen, TargetOpen
from arborist.core.errors import (
    ArboristError,
    DeadlineError,
    InvalidArgumentError,
    ResourceExhaustedError,
    StaleStampError,
    UnavailableError,
    UnimplementedError,
    UnknownSessionError,
)
from arborist.core.ngram import LOOKUP_WINDOW_TOKENS, NgramPolicy
from arborist.core.noise_aim import NoiseAim
from arborist.core.policies import Policy
from arborist.core.policy import TreePolicy
from arborist.core.policy_settings import DraftCalls
from arborist.core.pool_policies import pool_policy_name
from arborist.core.prefix import Prefix, share_scope
from arborist.core.stamp import Stamp
from arborist.core.tree import ROOT_ONLY, DraftTree, VerifyTree
from arborist.orchestrator.clock import Clock
from arborist.orchestrator.deadlines import Deadlines
from arborist.orchestrator.links import (
    DraftLink,
    Pairs,
    PrefilledChunk,
    Reply,
    TargetLink,
    TreeRequest,
    Verified,
    WorkerPool,
)
from arborist.orchestrator.phases import PhaseTimer
from arborist.orchestrator.request_trace import RequestTrace
from arborist.orchestrator.round import Round
from arborist.orchestrator.session import Session
from arborist.orchestrator.tree_sizer import RoundSizer

# Errors after which the session can be rebuilt on the same or another target.
_TARGET_LOST = (UnavailableError, DeadlineError, UnknownSessionError, StaleStampError)


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Bounds of one session's decoding.

    Attributes:
        prefill_chunk_tokens: Prompt tokens per Prefill.
        bulk_part_bytes: Most feature bytes of one command to the draft.
        max_target_moves: Times a session may be rebuilt on a target before it fails.
        draft_retry_rounds: Rounds without a draft before the first try to get one back; doubles
            with every failure.
        want_node_tokens: Ask for the target's token at every node (for `arborist trace`).
        draft_calls: "tree" = one trip to the draft a round, where the policy allows it.
        noise_aware: Tell the draft the target's noise, so that it aims at what will be drawn.
    """

    prefill_chunk_tokens: int = 512
    bulk_part_bytes: int = 256 * 1024
    max_target_moves: int = 3
    draft_retry_rounds: int = 8
    want_node_tokens: bool = False
    draft_calls: DraftCalls = "level"
    noise_aware: bool = True


class Decoder:
    """Decodes one session. Use `run` once, then `close`."""

    def __init__(
        self,
        session: Session,
        workers: WorkerPool,
        policy: Policy | None,
        *,
        limits: DecodeLimits,
        deadlines: Deadlines,
        clock: Clock,
        trace: RequestTrace,
        sizer: RoundSizer | None = None,
    ) -> None:
        """Prepares a decoder.

        Args:
            session: Fresh session; its log is the result.
            workers: Where targets and drafts come from.
            policy: Shapes the tree; None = plain decoding.
            limits: Bounds.
            deadlines: Shared by the sessions of a controller.
            clock: Time.
            trace: Where spans go.
            sizer: Sizes the policy's trees, which are then the largest ones; None = all are.
        """
        self._sizer = sizer
        self._session = session
        self._workers = workers
        self._policy = policy
        self._limits = limits
        self._deadlines = deadlines
        self._clock = clock
        self._trace = trace
        self._target: TargetLink | None = None
        self._lost_target: TargetLink | None = None
        self._target_epoch = 0
        self._target_moves = 0
        self._draft: DraftLink | None = None
        self._opening: asyncio.Task[int | None] | None = None
        self._target_digest = ""
        self._num_reused = 0
        self._draft_epoch = 0
        self._draft_held = 0
        self._draft_retry_at = 0
        self._draft_backoff = limits.draft_retry_rounds
        self._unsent: list[Pairs] = []
        self._pending: Pairs | None = None
        # While trees do not pay, the draft rests; it lacks the pairs from here on.
        self._resting = False
        self._rested_from: int | None = None

    async def run(self) -> AsyncIterator[Round]:
        """Yields the prefill, then every round, until the session has a finish reason.

        Cancellation or closing the iterator stops before the next command; `close` then frees
        the workers' state. Nothing yielded is ever taken back.

        Raises:
            ArboristError: The session cannot go on; what was yielded stands.
        """
        yield await self._prefill()
        round_index = 0
        while self._session.finish_reason is None:
            yield await self._round(round_index)
            round_index += 1

    def close(self) -> None:
        """Releases the session everywhere; safe to call twice and after any failure."""
        if self._target is not None:
            self._target.release(self._session.session_id)
            self._target = None
        self._drop_draft()

    # ---- one round -------------------------------------------------------------------------

    async def _round(self, index: int) -> Round:
        span = self._trace.name_span()
        session = self._session
        round_ = Round(
            round_index=index,
            prefix_length=session.committed_length,
            root=session.root,
            span_id=span.span_id,
            start_ns=self._clock.now_ns(),
        )
        timer = PhaseTimer(round_, self._clock, self._trace)
        tree = await self._draft_tree(index, timer)
        tree, verified = await self._verify(index, tree, timer)
        with timer.local("commit"):
            self._commit(round_, tree, verified)
        round_.end_ns = self._clock.now_ns()
        if self._sizer is not None:
            self._sizer.observe(round_)
        self._trace.record_round(round_)
        return round_

    async def _draft_tree(self, index: int, timer: PhaseTimer) -> VerifyTree:
        """Expands level by level, then reranks the pool (EAGLE-2 §4.1 and §4.2)."""
        policy = self._policy
        if policy is None:
            return ROOT_ONLY
        if isinstance(policy, NgramPolicy):
            return self._look_up(policy, timer)
        if self._draft is not None and self._is_outgrown(self._draft):
            self._drop_draft()
        if self._sizer is not None:
            sized = self._sizer.next_policy(self._target, self._draft)
            self._resting = sized is None
            if sized is None:
                self._rest_draft()
                return ROOT_ONLY
            policy = sized
        try:
            if not await self._catch_up(timer) and not await self._regain_draft(index, timer):
                return ROOT_ONLY
            tree = await self._grow(index, policy, timer)
            with timer.local("tree.rerank", rows=len(tree)):
                selected = policy.select(tree)
        except (ArboristError, ValueError):  # ValueError: a malformed level.
            self._lose_draft(index)
            return ROOT_ONLY
        timer.round.depth = tree.num_levels
        timer.round.speculated = True
        return selected

    def _look_up(self, policy: NgramPolicy, timer: PhaseTimer) -> VerifyTree:
        """Drafts from the text itself; no worker takes part."""
        end = self._session.committed_length
        with timer.local("tree.lookup"):
            text = self._session.committed(max(0, end - LOOKUP_WINDOW_TOKENS), end)
            tree = policy.propose(text)
        timer.round.depth = max(tree.depths)
        timer.round.speculated = True
        return tree

    async def _grow(self, index: int, policy: TreePolicy, timer: PhaseTimer) -> DraftTree:
        draft, pairs = self._draft, self._pending
        if draft is None or pairs is None:
            raise UnavailableError("no draft")
        tree = None
        if self._limits.draft_calls == "tree" and draft.grows_trees:
            tree = await self._grow_at_once(index, draft, pairs, policy, timer)
        if tree is None:
            tree = await self._grow_by_level(index, draft, pairs, policy, timer)
        self._observe("draft.", timer)
        return tree

    async def _grow_by_level(
        self, index: int, draft: DraftLink, pairs: Pairs, policy: TreePolicy, timer: PhaseTimer
    ) -> DraftTree:
        """Asks for one level after the other."""
        session_id, shape = self._session.session_id, policy.shape
        rows = len(pairs.tokens)
        deadline_s = self._deadlines.draft_s(rows)
        if _bulky(pairs, shape.depth):
            deadline_s = self._deadlines.prefill_s(rows)
        with timer.remote("draft.extend", rows) as call:
            level = call.done(
                await draft.extend(
                    session_id,
                    Stamp(self._draft_epoch, index + 1, 0),
                    pairs,
                    shape.top_k,
                    traceparent=call.traceparent,
                    deadline_s=deadline_s,
                )
            )
        self._pending = None
        tree = DraftTree(level)
        while (frontier := policy.frontier(tree)) is not None:
            with timer.remote("draft.expand", len(frontier)) as call:
                level = call.done(
                    await draft.expand(
                        session_id,
                        Stamp(self._draft_epoch, index + 1, tree.num_levels),
                        frontier,
                        shape.top_k,
                        traceparent=call.traceparent,
                        deadline_s=self._deadlines.draft_s(len(frontier)),
                    )
                )
            tree.grow(frontier, level)
        return tree

    async def _grow_at_once(
        self, index: int, draft: DraftLink, pairs: Pairs, policy: TreePolicy, timer: PhaseTimer
    ) -> DraftTree | None:
        """Has the draft follow the policy by itself, in one trip; None = it cannot."""
        name, rows = pool_policy_name(policy), len(pairs.tokens)
        if name is None or policy.shape.depth == 1:
            return None
        request = TreeRequest(name, policy.shape.depth, policy.shape.top_k)
        deadline_s = self._deadlines.draft_tree_s(rows, request.top_k, request.depth)
        if _bulky(pairs, request.depth):
            deadline_s += self._deadlines.prefill_s(rows)
        try:
            with timer.remote_tree(rows, request.depth) as call:
                level, pool = call.done_both(
                    *await draft.extend_tree(
                        self._session.session_id,
                        Stamp(self._draft_epoch, index + 1, 0),
                        pairs,
                        request,
                        traceparent=call.traceparent,
                        level_spans=call.level_spans,
                        deadline_s=deadline_s,
                    )
                )
        except UnimplementedError:
            return None  # The Extend stands: with the same stamp it may be asked for again.
        self._pending = None
        return pool.tree(level)

    async def _verify(
        self, index: int, tree: VerifyTree, timer: PhaseTimer
    ) -> tuple[VerifyTree, Verified]:
        """Has the target verify; after a loss, rebuilds the session and asks again.

        Returns:
            The tree that was verified (the root alone if the target refused the draft's) and
            the outcome.
        """
        for attempt in itertools.count():
            target = await self._live_target(timer)
            rows = len(tree.tokens) + 1
            try:
                with timer.remote("target.verify", rows) as call:
                    verified = call.done(
                        await target.verify(
                            self._session.session_id,
                            Stamp(self._target_epoch, index + 1, attempt),
                            self._session.committed_length,
                            self._session.root,
                            tree,
                            want_features=self._reads_features and not self._resting,
                            want_node_tokens=self._limits.want_node_tokens,
                            num_logprobs=self._session.num_logprobs,
                            traceparent=call.traceparent,
                            deadline_s=self._deadlines.target_s(rows),
                        )
                    )
            except _TARGET_LOST as error:
                self._lose_target(error)
                continue
            except InvalidArgumentError:
                if not tree.tokens:
                    raise
                # Drafts are not trusted: a tree the target refuses costs the draft its place.
                tree = ROOT_ONLY
                self._lose_draft(index)
                continue
            self._observe("target.verify", timer)
            return tree, verified
        raise AssertionError("unreachable")

    def _commit(self, round_: Round, tree: VerifyTree, verified: Verified) -> None:
        """Appends accepted tokens and bonus; their pairs are the draft's next Extend."""
        path = [tree.tokens[node - 1] for node in verified.accepted_nodes]
        tokens = [*path, verified.bonus]
        if self._resting:
            pass  # The draft is told once it is asked again.
        elif self._reads_tokens:
            self._pending = Pairs(self._session.committed_length, tokens, None)
        elif self._draft is not None and verified.features is not None:
            # f of root and accepted nodes pair with the token that follows each (DESIGN §2.1).
            self._pending = Pairs(self._session.committed_length - 1, tokens, verified.features)
        round_.tree = tree
        round_.accepted_nodes = verified.accepted_nodes
        round_.bonus = verified.bonus
        round_.min_margin = verified.min_margin
        round_.node_tokens = verified.node_tokens
        round_.tokens = self._session.commit(tokens)
        round_.logprobs = verified.logprobs[: len(round_.tokens)]

    # ---- prefill ---------------------------------------------------------------------------

    async def _prefill(self) -> Round:
        span = self._trace.name_span()
        round_ = Round(-1, len(self._session.prompt), -1, span.span_id, self._clock.now_ns())
        timer = PhaseTimer(round_, self._clock, self._trace)
        while True:
            try:
                # The prompt's last token is always computed: it gives the root.
                target, draft = await self._open_target(self._session.prompt[:-1])
                self._target = target
                if self._sizer is not None and self._sizer.rests_at(target):
                    # It is asked once a tree might pay; the target keeps the features till then.
                    self._resting = True
                else:
                    self._ask_draft(draft, self._session.prompt)
                last = await self._prefill_target(
                    self._target, self._session.prompt, timer, fresh=True
                )
                break
            except _TARGET_LOST as error:
                self._drop_draft()
                self._lose_target(error)
        if last is None or last.root is None:
            raise UnavailableError("the target returned no root")
        if self._reads_tokens:
            self._pending = Pairs(self._session.committed_length, [last.root], None)
        with timer.local("commit"):
            round_.num_reused = self._num_reused
            round_.bonus = last.root
            round_.tokens = self._session.commit([last.root])
            round_.logprobs = [last.logprobs] if last.logprobs is not None else []
        round_.end_ns = self._clock.now_ns()
        if self._sizer is not None:
            self._sizer.observe_prefill(round_)
        self._trace.record_round(round_)
        return round_

    async def _prefill_target(
        self, target: TargetLink, tokens: list[int], timer: PhaseTimer, *, fresh: bool
    ) -> PrefilledChunk | None:
        """Prefills in chunks, two in flight.

        Args:
            target: Where the session is open.
            tokens: The prompt, or the committed log without its root; what the target has of
                them already is left out.
            timer: Round the time belongs to.
            fresh: Whether the session begins: then the last chunk draws the first token and
                the draft is fed as features arrive. A rebuilt target leaves the draft alone.
        Returns:
            The last chunk: with the target's token after the prompt when `fresh`; None if the
            target had all of them.
        """
        chunk = self._limits.prefill_chunk_tokens
        begins = list(range(self._num_reused, len(tokens), chunk))
        if fresh and self._reads_tokens:
            self._unsent += Pairs(0, tokens[: self._num_reused], None).rows_of(chunk)
        window: list[tuple[int, asyncio.Task[Reply[PrefilledChunk]]]] = []
        done: PrefilledChunk | None = None
        try:
            for step, begin in enumerate(begins):
                part = tokens[begin : begin + chunk]
                last = fresh and begin == begins[-1]
                want_features = fresh and self._reads_features and self._rested_from is None
                coroutine = self._prefill_chunk(
                    target, step, begin, part, timer, last=last, want_features=want_features
                )
                window.append((begin, asyncio.ensure_future(coroutine)))
                if fresh and self._reads_tokens:
                    # It needs nothing of the target and reads along.
                    self._unsent.append(Pairs(begin, part, None))
                    if not last:
                        await self._send_early(timer)
                if len(window) == 2:
                    done = await self._take_chunk(*window.pop(0), tokens, timer)
            while window:
                done = await self._take_chunk(*window.pop(0), tokens, timer)
        finally:
            for _, task in window:
                task.cancel()
        return done

    async def _prefill_chunk(
        self,
        target: TargetLink,
        step: int,
        begin: int,
        tokens: list[int],
        timer: PhaseTimer,
        *,
        last: bool,
        want_features: bool,
    ) -> Reply[PrefilledChunk]:
        with timer.remote("target.prefill", len(tokens)) as call:
            reply = await target.prefill(
                self._session.session_id,
                Stamp(self._target_epoch, 0, step),
                begin,
                tokens,
                last=last,
                want_features=want_features,
                num_logprobs=self._session.num_logprobs if last else None,
                traceparent=call.traceparent,
                deadline_s=self._deadlines.prefill_s(begin + 2 * len(tokens)),
            )
            call.done(reply)
        return reply

    async def _take_chunk(
        self,
        begin: int,
        task: asyncio.Task[Reply[PrefilledChunk]],
        tokens: list[int],
        timer: PhaseTimer,
    ) -> PrefilledChunk:
        """Waits for a chunk and passes its pairs on; the last chunk's wait for round 0.

        The first token waits for no draft: what it cannot be sent yet is sent in round 0.
        """
        chunk = (await task).value
        if chunk.features is None or self._draft is None or self._rested_from is not None:
            return chunk
        end = begin + len(chunk.features)
        following = tokens[begin + 1 : end + 1]
        if chunk.root is not None:
            following.append(chunk.root)
        parts = Pairs(begin, following, chunk.features).parts(self._limits.bulk_part_bytes)
        self._unsent += parts
        if end == len(tokens):
            self._pending = self._unsent.pop()
        else:
            await self._send_early(timer)
        return chunk

    async def _send_early(self, timer: PhaseTimer) -> None:
        """Sends what the draft can be sent without waiting for it to be open.

        Nor does a draft that lacks what the target took over wait for it here: reading that may
        take as long as the prompt would have. It is fed from the target's store in round 0, so that
        nothing more is kept for it.
        """
        opening = self._opening
        if opening is not None and not opening.done():
            return
        held = None if opening is None else opening.result()
        if held is not None and self._gap_behind(held):
            self._unsent, self._pending, self._rested_from = [], None, held
            return
        await self._catch_up(timer)

    async def _append(self, parts: list[Pairs], timer: PhaseTimer) -> None:
        """Feeds the draft outside a round; a failure only costs the draft."""
        # Stamped behind every round that was drafted, and ahead of this one's tree.
        index = max(timer.round.round_index, 0)
        for pairs in parts:
            draft = self._draft
            if draft is None:
                return
            try:
                with timer.remote("draft.append", len(pairs.tokens)) as call:
                    call.done(
                        await draft.append(
                            self._session.session_id,
                            Stamp(self._draft_epoch, index, pairs.begin),
                            pairs,
                            traceparent=call.traceparent,
                            deadline_s=self._deadlines.prefill_s(len(pairs.tokens)),
                        )
                    )
            except ArboristError:
                self._lose_draft(index)

    # ---- targets ---------------------------------------------------------------------------

    async def _open_target(self, known: list[int]) -> tuple[TargetLink, DraftLink | None]:
        """Opens the session at a target that has room for it.

        Args:
            known: What the target will be given to prefill, as far as it may have it already.
        Returns:
            The target and the draft whose features it keeps.
        Raises:
            ResourceExhaustedError: None has room, though one could have.
            InvalidArgumentError: None could ever hold it, or take it.
        """
        full: list[TargetLink] = []
        refusal: ArboristError | None = None
        target = await self._workers.target(self._lost_target)
        while target not in full:
            try:
                return target, await self._open_at(target, known)
            except (ResourceExhaustedError, InvalidArgumentError) as error:
                # What is too long for one may fit another: targets need not be alike.
                if refusal is None or isinstance(error, ResourceExhaustedError):
                    refusal = error
            full.append(target)
            target = await self._workers.target(self._lost_target, full)
        raise refusal or UnavailableError("no target")

    async def _open_at(self, target: TargetLink, known: list[int]) -> DraftLink | None:
        """Opens the session at a target and returns the draft whose features it keeps."""
        self._target_epoch += 1
        # The session's own draft, if it has one: a new target keeps the features that it reads.
        draft = self._draft or self._pick_draft()
        self._num_reused = await target.open(
            self._session.session_id,
            self._target_epoch,
            self._target_request(draft, self._prefix(known)),
            self._deadlines.open_s(compiles=self._session.json_schema is not None),
        )
        self._target_digest = target.info.digest
        return draft

    def _prefix(self, tokens: list[int], *others: str) -> Prefix | None:
        """Returns what may be shared, with sessions of which these others are alike too."""
        tenant = self._session.tenant
        return None if tenant is None else Prefix.of(share_scope(tenant, *others), tokens)

    def _target_request(self, draft: DraftLink | None, prefix: Prefix | None) -> TargetOpen:
        session = self._session
        nodes = self._policy.shape.num_draft_tokens if self._policy is not None else 0
        held_back = session.eos_token_ids | session.stop_token_ids
        return TargetOpen(
            sampling=session.sampling,
            feature_spec=draft.feature_spec if draft is not None else None,
            max_length=session.max_length,
            max_draft_tokens=nodes,
            # Also when committed tokens are prefilled again: they stay output.
            prompt_length=len(session.prompt),
            end_token_ids=tuple(sorted(held_back)) if session.sampling.min_tokens else (),
            prefix=prefix,
            json_schema=session.json_schema,
        )

    async def _live_target(self, timer: PhaseTimer) -> TargetLink:
        """Returns the target, rebuilding the session from the committed log if it was lost."""
        if self._target is not None:
            return self._target
        with ExitStack() as ahead:
            return await self._rebuild(timer, ahead)

    async def _rebuild(self, timer: PhaseTimer, ahead: ExitStack) -> TargetLink:
        """Opens the session elsewhere and prefills what was committed.

        Args:
            timer: Of the round.
            ahead: Holds new sessions back while this one waits for room.
        """
        known = self._session.committed(0, self._session.committed_length - 1)
        waits = False
        while self._target is None:
            try:
                self._target, _ = await self._open_target(known)
                ahead.close()
                waits = False
                await self._prefill_target(self._target, known, timer, fresh=False)
            except _TARGET_LOST as error:
                self._lose_target(error)
            except ResourceExhaustedError as error:
                # What was delivered stands, so it waits where a new request would step back.
                if self._target is not None:
                    self._target.release(self._session.session_id)
                    self._target = None
                if not waits:
                    ahead.enter_context(self._workers.moving())
                    waits = True
                await self._workers.wait_for_room(error)
        return self._target

    def _lose_target(self, error: ArboristError) -> None:
        if self._target is not None:
            self._target.release(self._session.session_id)
            self._lost_target, self._target = self._target, None
        self._target_moves += 1
        if self._target_moves > self._limits.max_target_moves:
            raise error

    # ---- drafts ----------------------------------------------------------------------------

    def _pick_draft(self) -> DraftLink | None:
        if self._policy is None or isinstance(self._policy, NgramPolicy):
            return None
        draft = self._workers.draft()
        return None if draft is None or self._is_outgrown(draft) else draft

    def _ask_draft(self, draft: DraftLink | None, known: list[int]) -> None:
        """Asks a draft, if there is one, to open the session; `_catch_up` waits for the answer.

        Args:
            draft: Whom to ask.
            known: Committed tokens it may have read in an earlier session.
        """
        if draft is None:
            return
        self._draft_epoch += 1
        self._draft, self._draft_held = draft, 0
        # What a head reads comes from the target, so that sessions of another share nothing.
        prefix = self._prefix(known, self._target_digest)
        request = DraftOpen(self._session.max_length, self._noise_aim(), prefix)
        self._opening = asyncio.ensure_future(self._open_draft(draft, request))

    async def _open_draft(self, draft: DraftLink, request: DraftOpen) -> int | None:
        """Returns how much the draft holds already; None if it cannot be had."""
        try:
            return await draft.open(
                self._session.session_id,
                self._draft_epoch,
                request,
                self._deadlines.draft_open_s,
            )
        except ArboristError:
            return None

    async def _catch_up(self, timer: PhaseTimer) -> bool:
        """Waits until the draft is open and has what was kept for it; returns if there is one."""
        if self._opening is not None:
            held, self._opening = await self._opening, None
            if held is None:
                self._drop_draft()
            else:
                self._draft_held = held
                await self._fill_gap(timer)
        parts, self._unsent = self._unsent, []
        rests = [one.after(self._draft_held) for one in parts]
        if self._pending is not None:
            self._pending = self._pending.after(self._draft_held)
        await self._append([one for one in rests if one is not None], timer)
        if self._draft is not None and self._rested_from is not None:
            begin, self._rested_from = self._rested_from, None
            await self._feed_from(max(begin, self._draft_held), timer)
        return self._draft is not None

    def _rest_draft(self) -> None:
        """Keeps nothing for the draft: the target's feature store and the log have it all."""
        kept = [*self._unsent, *([] if self._pending is None else [self._pending])]
        if kept and self._rested_from is None:
            self._rested_from = kept[0].begin
        self._unsent, self._pending = [], None

    async def _fill_gap(self, timer: PhaseTimer) -> None:
        """Reads the features between what the draft holds and what waits for it.

        The target has computed nothing of what it took over, so it has not sent those.
        """
        if self._rested_from is not None:
            self._rested_from = self._draft_held  # Whatever comes behind was never sent.
            return
        end = self._gap_behind(self._draft_held)
        if not end:
            return
        try:
            gap = await self._read_pairs(self._draft_held, end, timer)
        except ArboristError:
            self._lose_draft(max(timer.round.round_index, 0))
        else:
            self._unsent = [*gap, *self._unsent]

    def _gap_behind(self, held: int) -> int:
        """Returns where the pairs begin that wait for a draft, if it lacks some before; else 0.

        Args:
            held: Pairs that the draft holds.
        """
        waiting = self._unsent[0] if self._unsent else self._pending
        if waiting is None or waiting.begin <= held or not self._reads_features:
            return 0
        return waiting.begin

    async def _read_pairs(self, begin: int, end: int, timer: PhaseTimer) -> list[Pairs]:
        """Reads features of [begin, end) from the target and pairs them, a chunk at a time."""
        target, chunk = await self._live_target(timer), self._limits.prefill_chunk_tokens
        found: list[Pairs] = []
        for at in range(begin, end, chunk):
            upto = min(at + chunk, end)
            with timer.remote("target.read_features", upto - at) as call:
                reply = await target.read_features(
                    self._session.session_id, at, upto, self._deadlines.prefill_s(upto - at)
                )
                features = call.done(reply)
            pairs = Pairs(at, self._session.committed(at + 1, upto + 1), features)
            found += pairs.parts(self._limits.bulk_part_bytes)
        return found

    def _noise_aim(self) -> NoiseAim | None:
        """Returns what the draft is told of the target's noise: nothing when there is none."""
        sampling = self._session.sampling
        if sampling.greedy or not self._limits.noise_aware:
            return None
        return NoiseAim(sampling.seed, sampling.temperature)

    async def _regain_draft(self, index: int, timer: PhaseTimer) -> bool:
        """Now and then tries to get a draft back, which then lacks everything."""
        if index < self._draft_retry_at:
            return False
        known = self._session.committed(0, self._session.committed_length - 1)
        self._ask_draft(self._pick_draft(), known)
        self._rested_from = 0
        if await self._catch_up(timer):
            return True
        if index >= self._draft_retry_at:  # It did not open; what else fails has been counted.
            self._lose_draft(index)
        return False

    async def _feed_from(self, first: int, timer: PhaseTimer) -> None:
        """Gives the draft what it lacks; the last part goes with the round's Extend.

        A head is fed from the target's feature store, a language model from the committed log.

        Args:
            first: Draft position from which on it holds nothing.
            timer: Of the round.
        """
        if self._reads_tokens:
            await self._feed_tokens(first, timer)
            return
        chunk, end = self._limits.prefill_chunk_tokens, self._session.committed_length - 1
        parts: list[Pairs] = []
        for begin in range(first, end, chunk):
            upto = min(begin + chunk, end)
            parts = await self._read_pairs(begin, upto, timer)
            await self._append(parts[:-1] if upto == end else parts, timer)
            if self._draft is None:
                return
        self._pending = parts[-1]

    async def _feed_tokens(self, first: int, timer: PhaseTimer) -> None:
        """Gives a language-model draft committed tokens; the root goes with the round's Extend."""
        chunk, root_at = self._limits.prefill_chunk_tokens, self._session.committed_length - 1
        known = self._session.committed(first, root_at)
        await self._append(Pairs(first, known, None).rows_of(chunk), timer)
        if self._draft is not None:
            self._pending = Pairs(root_at, [self._session.root], None)

    @property
    def _reads_features(self) -> bool:
        """Returns whether there is a draft that is fed with features."""
        return self._draft is not None and self._draft.feature_spec is not None

    @property
    def _reads_tokens(self) -> bool:
        """Returns whether there is a draft that is fed with committed tokens alone."""
        return self._draft is not None and self._draft.feature_spec is None

    def _is_outgrown(self, draft: DraftLink) -> bool:
        """Returns whether the session no longer fits the context of a language-model draft."""
        return self._session.committed_length >= draft.info.context_length

    def _lose_draft(self, index: int) -> None:
        """Goes on without a draft; tries again later, each time twice as late."""
        self._drop_draft()
        self._draft_retry_at = index + self._draft_backoff
        self._draft_backoff *= 2

    def _drop_draft(self) -> None:
        self._unsent, self._pending, self._rested_from = [], None, None
        if self._opening is not None:
            self._opening.cancel()  # The link then frees what the draft may yet open.
            self._opening = None
        if self._draft is not None:
            self._draft.release(self._session.session_id)
            self._draft = None

    def _observe(self, prefix: str, timer: PhaseTimer) -> None:
        kind = prefix.partition(".")[0]
        for phase in timer.round.phases:
            if phase.remote and not phase.failed and phase.name.startswith(prefix):
                self._deadlines.observe(kind, phase.rows, phase.wall_ms / 1e3)


def _bulky(pairs: Pairs, depth: int) -> bool:
    """Returns whether an Extend carries what is left of a prompt.

    The first one does, and the first after a draft came back.
    """
    return len(pairs.tokens) > depth + 1
