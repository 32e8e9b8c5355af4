"""What happened in one round: for the client, the trace, the metrics and the benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field

from arborist.core.logprobs import TokenLogprobs
from arborist.core.tree import ROOT_ONLY, VerifyTree


@dataclass(slots=True)  # Not frozen: several are made in every round, and frozen ones slowly.
class Phase:
    """One timed part of a round; nobody changes it.

    Attributes:
        name: Span name of DESIGN §6: draft.extend, draft.expand, tree.rerank, target.verify, ...
        span_id: Its span, 0 when not traced.
        start_ns: Unix time, nanoseconds.
        end_ns: Unix time, nanoseconds.
        queue_ms: Wait at the worker; 0 for local work.
        compute_ms: Forward at the worker; 0 for local work.
        remote: Whether a worker did it.
        rows: Rows or nodes it was about.
        failed: Reason of the error that ended it; empty when it succeeded.
        same_call: Whether the command of the phase before did this too.
    """

    name: str
    span_id: int
    start_ns: int
    end_ns: int
    queue_ms: float = 0.0
    compute_ms: float = 0.0
    remote: bool = False
    rows: int = 0
    failed: str = ""
    same_call: bool = False

    @property
    def wall_ms(self) -> float:
        """Returns its duration, in milliseconds."""
        return (self.end_ns - self.start_ns) / 1e6


@dataclass(frozen=True, slots=True)
class RoundTimes:
    """Where a round's wall time went, all in milliseconds."""

    draft_compute_ms: float
    verify_compute_ms: float
    transport_ms: float
    controller_ms: float
    total_ms: float


@dataclass(slots=True)
class Round:
    """One round, or the prefill (round_index −1).

    Attributes:
        round_index: From 0; −1 for the prefill.
        prefix_length: Committed length before the round.
        root: Last committed token before the round; −1 for the prefill.
        span_id: Span of the round, 0 when not traced.
        start_ns: Unix time, nanoseconds.
        end_ns: Unix time, nanoseconds; set when the round is committed.
        phases: In order of start.
        tree: What was verified.
        depth: Levels drafted below the root.
        accepted_nodes: Accepted path in the tree, root excluded.
        bonus: Token the target supplied.
        tokens: Tokens committed, cut at eos and limit.
        speculated: Whether a draft took part.
        min_margin: Smallest gap of the two best logits on the path.
        node_tokens: The target's token at every node; only when asked for.
        logprobs: Raw log-probs, one per token of `tokens`; empty unless asked for.
        num_reused: Prompt tokens that the prefill found computed.
    """

    round_index: int
    prefix_length: int
    root: int
    span_id: int
    start_ns: int
    end_ns: int = 0
    phases: list[Phase] = field(default_factory=list)
    tree: VerifyTree = ROOT_ONLY
    depth: int = 0
    accepted_nodes: tuple[int, ...] = ()
    bonus: int = -1
    tokens: list[int] = field(default_factory=list)
    speculated: bool = False
    min_margin: float = 0.0
    node_tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_reused: int = 0
    _times: RoundTimes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def num_draft_tokens(self) -> int:
        """Returns the drafted nodes verified."""
        return len(self.tree.tokens)

    @property
    def accepted_count(self) -> int:
        """Returns the drafted tokens accepted, bonus excluded."""
        return len(self.accepted_nodes)

    @property
    def wall_ms(self) -> float:
        """Returns its duration, in milliseconds."""
        return (self.end_ns - self.start_ns) / 1e6

    @property
    def times(self) -> RoundTimes:
        """Returns the split of the wall time: draft, verify, transport, controller.

        Looked at once, when the round has ended: the client, the metrics and the trace ask for it.
        """
        if self._times is None:
            self._times = self._split()
        return self._times

    def _split(self) -> RoundTimes:
        draft = verify = wall = 0.0
        for phase in self.phases:
            if phase.remote:
                wall += phase.wall_ms
                if phase.name.startswith("draft."):
                    draft += phase.compute_ms
                else:
                    verify += phase.compute_ms
        return RoundTimes(
            draft_compute_ms=draft,
            verify_compute_ms=verify,
            transport_ms=max(wall - draft - verify, 0.0),
            controller_ms=max(self.wall_ms - wall, 0.0),
            total_ms=self.wall_ms,
        )
