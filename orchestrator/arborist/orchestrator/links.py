"""What the decode loop asks of workers, whatever carries it: gRPC, or a call in process."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from arborist.core.cost_table import CostTable
from arborist.core.engine import DraftOpen, ModelInfo, TargetOpen
from arborist.core.errors import ResourceExhaustedError
from arborist.core.features import FeatureSpec
from arborist.core.logprobs import TokenLogprobs
from arborist.core.pool import Pool
from arborist.core.stamp import Stamp
from arborist.core.tree import IntArray, Level, VerifyTree
from arborist.orchestrator.request_trace import SpanName

ValueT = TypeVar("ValueT")
ValueT_co = TypeVar("ValueT_co", covariant=True)


class Features(Sized, Protocol):
    """Feature rows on their way from target to draft; the controller never looks inside."""

    @property
    def nbytes(self) -> int:
        """Returns the size of all rows, in bytes."""
        ...

    def __getitem__(self, rows: slice, /) -> Features:
        """Returns consecutive rows."""
        ...


@dataclass(frozen=True, slots=True)
class Reply(Generic[ValueT_co]):
    """A worker's answer with where its time went.

    Attributes:
        value: The answer.
        queue_ms: Wait for a forward at the worker.
        compute_ms: Forward it was part of.
    """

    value: ValueT_co
    queue_ms: float
    compute_ms: float


@dataclass(frozen=True, slots=True)
class Pairs:
    """True (feature, token) pairs for the draft: feature f_t with token x_{t+1}.

    A language model gets committed tokens alone, each at its own position.

    Attributes:
        begin: Draft position of the first pair.
        tokens: x_{begin+1}, ...; for a language model x_begin, ...
        features: f_begin, ..., one row per token; None for a language model.
    """

    begin: int
    tokens: list[int]
    features: Features | None

    @property
    def end(self) -> int:
        """Returns one past the last draft position."""
        return self.begin + len(self.tokens)

    def after(self, begin: int) -> Pairs | None:
        """Returns the pairs from draft position `begin` on; None if there are none."""
        skipped = max(begin - self.begin, 0)
        if skipped >= len(self.tokens):
            return None
        features = None if self.features is None else self.features[skipped:]
        return Pairs(self.begin + skipped, self.tokens[skipped:], features)

    def rows_of(self, count: int) -> list[Pairs]:
        """Splits pairs without features into parts of at most `count`."""
        return [
            Pairs(self.begin + at, self.tokens[at : at + count], None)
            for at in range(0, len(self.tokens), count)
        ]

    def parts(self, max_bytes: int) -> list[Pairs]:
        """Splits into parts whose features take at most `max_bytes` (at least one row each)."""
        features = self.features
        if features is None:
            return [self]
        row_bytes = max(features.nbytes // max(len(self.tokens), 1), 1)
        rows = max(max_bytes // row_bytes, 1)
        if rows >= len(self.tokens):
            return [self]
        return [
            Pairs(self.begin + at, self.tokens[at : at + rows], features[at : at + rows])
            for at in range(0, len(self.tokens), rows)
        ]


@dataclass(frozen=True, slots=True)
class TreeRequest:
    """A pool that the draft is to grow by itself.

    Attributes:
        policy: Chooses the frontiers; one of pool_policies.POOL_POLICY_NAMES.
        depth: Levels below the root, in [2, 16].
        top_k: Frontier width and children per node.
    """

    policy: str
    depth: int
    top_k: int


@dataclass(frozen=True, slots=True)
class PrefilledChunk:
    """A prefilled chunk as the controller sees it."""

    features: Features | None
    root: int | None
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """Outcome of Verify as the controller sees it."""

    accepted_nodes: tuple[int, ...]
    bonus: int
    features: Features | None
    node_tokens: list[int]
    min_margin: float
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class TargetLink(Protocol):
    """One target worker.

    Every call raises ArboristError subclasses only: UnavailableError when the worker is gone,
    DeadlineError when `deadline_s` passes (the late result is dropped).
    """

    @property
    def info(self) -> ModelInfo:
        """Returns what the worker holds."""
        ...

    @property
    def keeps_features(self) -> bool:
        """Returns whether a draft that rested can be told what it missed."""
        ...

    @property
    def costs(self) -> CostTable | None:
        """Returns what its forwards take by their rows; None when that is not known."""
        ...

    @property
    def num_sessions(self) -> int:
        """Returns our sessions that are open there."""
        ...

    @property
    def prefilled_tokens(self) -> int:
        """Returns the prompt tokens that it computed for our sessions so far."""
        ...

    async def open(
        self, session_id: str, epoch: int, request: TargetOpen, deadline_s: float
    ) -> int:
        """Reserves the session.

        Returns:
            Leading positions of the request's prefix whose KV and features are there already.
        """
        ...

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
        """Runs a chunk of the prompt, on the bulk lane."""
        ...

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
        ...

    async def read_features(
        self, session_id: str, begin: int, end: int, deadline_s: float
    ) -> Reply[Features]:
        """Reads stored features, on the bulk lane."""
        ...

    def release(self, session_id: str) -> None:
        """Frees the session; fire and forget, never raises."""
        ...


class DraftLink(Protocol):
    """One draft worker; errors as for TargetLink."""

    @property
    def info(self) -> ModelInfo:
        """Returns what the worker holds."""
        ...

    @property
    def costs(self) -> CostTable | None:
        """Returns what its forwards take by their rows; None when that is not known."""
        ...

    @property
    def feature_spec(self) -> FeatureSpec | None:
        """Returns the features the draft wants; None = it is a language model."""
        ...

    @property
    def grows_trees(self) -> bool:
        """Returns whether `extend_tree` may be asked for, as far as known."""
        ...

    async def open(self, session_id: str, epoch: int, request: DraftOpen, deadline_s: float) -> int:
        """Reserves the session.

        Returns:
            Pairs of the request's prefix that are there already; tokens for a language model.
        """
        ...

    async def append(
        self, session_id: str, stamp: Stamp, pairs: Pairs, *, traceparent: str, deadline_s: float
    ) -> Reply[None]:
        """Extend without a level, on the bulk lane."""
        ...

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
        ...

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
        ...

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
        """Extend and, right behind it at the next step, ExpandTree: one trip.

        Args:
            session_id: Session.
            stamp: Of the Extend.
            pairs: For the Extend.
            request: What to grow.
            traceparent: Span of the Extend.
            level_spans: Spans of levels 2, 3, ...
            deadline_s: Seconds for both.
        Returns:
            Level 1, and levels 2 to depth. Their sizes and tokens are checked, what their rows
            point at is not: see `Pool.tree`.
        Raises:
            UnimplementedError: The worker knows no ExpandTree; the Extend was done.
        """
        ...

    def release(self, session_id: str) -> None:
        """Frees the session; fire and forget, never raises."""
        ...


class WorkerPool(Protocol):
    """Where the decode loop finds workers, at the start and after one was lost."""

    async def target(
        self, avoid: TargetLink | None = None, full: Collection[TargetLink] = ()
    ) -> TargetLink:
        """Returns a live target, another than `avoid` if there is one.

        Waits a bounded time for one to come (back) alive.

        Args:
            avoid: One that was lost; comes before those of `full`.
            full: Those that have just refused the session for want of room; one of them is
                returned only if there is no other.
        Raises:
            UnavailableError: None came alive in that time.
        """
        ...

    def draft(self) -> DraftLink | None:
        """Returns a live draft that fits the target, or None; never waits."""
        ...

    def moving(self) -> AbstractContextManager[None]:
        """Begins no new session while the block runs, in which one moves to another target."""
        ...

    async def wait_for_room(self, error: ResourceExhaustedError) -> None:
        """Returns when a session that moves may ask again whether a target has room.

        Args:
            error: What the target said.
        Raises:
            ResourceExhaustedError: Nothing that runs would make room.
        """
        ...
