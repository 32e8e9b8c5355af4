"""Trees that follow the load: the size of one session's trees, round by round.

The rule itself is `core.tree_sizing`; what it is told is `Experience`: the cost tables that workers
measure, the sessions that share a target, how much longer rounds really take, and what trees have
had accepted. Prompts that share a target's forwards are work beside the rounds, whether sessions
draft or not, and are counted as such.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from arborist.core.acceptance import AcceptanceGrid
from arborist.core.cost_table import CostTable
from arborist.core.policy import Eagle2Policy
from arborist.core.shape import TreeShape
from arborist.core.tree_sizing import Load, drafted_ms, plain_ms
from arborist.orchestrator.experience import CostedTarget, Experience, Experiences
from arborist.orchestrator.round import Round


class CostedDraft(Protocol):
    """A draft that says what its forwards cost."""

    @property
    def costs(self) -> CostTable | None:
        """Returns what a forward takes; None while it is not known."""
        ...


class RoundSizer(Protocol):
    """Sizes the trees of one session, round by round."""

    def rests_at(self, target: CostedTarget) -> bool:
        """Returns whether a session that begins at a target needs no draft yet."""
        ...

    def observe_prefill(self, round_: Round) -> None:
        """Learns from the session's prefill."""
        ...

    def next_policy(
        self, target: CostedTarget | None, draft: CostedDraft | None
    ) -> Eagle2Policy | None:
        """Returns the policy of the coming round; None = the root alone."""
        ...

    def observe(self, round_: Round) -> None:
        """Learns from a round that was committed."""
        ...


@dataclass(frozen=True, slots=True)
class _Begun:
    """What held when a round began.

    Attributes:
        target: Where it runs.
        experience: Of that target.
        load: The load.
        prefilled_tokens: Of the target, so far.
        drafts: Whether sessions draft.
        probes: Whether this one tries a larger tree than the others.
    """

    target: CostedTarget
    experience: Experience
    load: Load
    prefilled_tokens: int
    drafts: bool
    probes: bool = False

    @property
    def prompt_rows(self) -> int:
        """Returns the prompt tokens that the target's forwards have computed since."""
        return self.target.prefilled_tokens - self.prefilled_tokens


class TreeSizer:
    """Sizes the trees of one session."""

    def __init__(self, experiences: Experiences, policy: Eagle2Policy) -> None:
        """Begins with what other sessions learned.

        Args:
            experiences: Shared by the sessions of a controller.
            policy: The largest tree.
        """
        self._experiences = experiences
        self._largest = policy
        self._grid: AcceptanceGrid | None = None
        self._begun: _Begun | None = None

    def rests_at(self, target: CostedTarget) -> bool:
        """Returns whether a session that begins at a target needs no draft yet.

        Args:
            target: Where it was opened.
        """
        self._begun = None
        if not target.keeps_features:
            return False
        experience, num_sessions = self._experiences.of(target), max(1, target.num_sessions)
        rests = experience.rests(num_sessions)
        verify, drafting = target.costs, experience.draft_costs
        if verify is not None and drafting is not None:
            load = experience.load(num_sessions, verify, drafting)
            self._begun = _Begun(target, experience, load, target.prefilled_tokens, not rests)
        return rests

    def observe_prefill(self, round_: Round) -> None:
        """Learns from the way to the first token: it waits for the others' forwards.

        Args:
            round_: The session's prefill.
        """
        begun = self._begun
        if begun is not None and not _has_failed(round_):
            expected_ms = plain_ms(begun.load, begun.prompt_rows)
            begun.experience.observe(
                _wall_ms(round_),
                expected_ms,
                drafted=begun.drafts,
                num_sessions=begun.load.num_sessions,
            )

    def next_policy(
        self, target: CostedTarget | None, draft: CostedDraft | None
    ) -> Eagle2Policy | None:
        """Returns the policy of the coming round.

        Args:
            target: Verifies it; None = it is gone.
            draft: Drafts for it; None = it is gone or was never asked.
        Returns:
            The policy; None = the root alone.
        """
        self._begun = None
        if target is None or not target.keeps_features:
            return self._largest
        limit, experience = self._largest.shape, self._experiences.of(target)
        if self._grid is None:
            self._grid = experience.grid(limit).copy()  # The others' trees are where it begins.
        if draft is not None:
            experience.draft_costs = draft.costs
        verify, drafting = target.costs, experience.draft_costs
        if verify is None or drafting is None:
            return self._largest
        load = experience.load(max(1, target.num_sessions), verify, drafting)
        # Alone, a session's own text counts; among others, that of all: it is known better.
        grid = self._grid if load.num_sessions == 1 else experience.grid(limit)
        size = experience.decide(limit, grid, load)
        tried = experience.probe(limit, grid, load)
        shape = tried or size.shape
        self._begun = _Begun(
            target,
            experience,
            load,
            target.prefilled_tokens,
            drafts=shape is not None,
            probes=tried is not None,
        )
        return None if shape is None else self._largest.resized(shape)

    def observe(self, round_: Round) -> None:
        """Learns from a round that was committed."""
        begun, limit = self._begun, self._largest.shape
        if begun is None or self._grid is None:
            return
        load, experience = begun.load, begun.experience
        if round_.speculated:
            for grid in (self._grid, experience.grid(limit)):
                grid.observe(round_.tree, round_.depth, round_.accepted_nodes)
        if _has_failed(round_):
            return  # Its time says nothing of the next round's.
        actual_ms = _wall_ms(round_)
        if begun.probes:
            # Its time is the others' forwards and its own draft's catching up.
            experience.observe_probe(limit, actual_ms, 1 + round_.accepted_count)
            return
        if round_.speculated:
            shape = TreeShape(round_.depth, limit.top_k, max(1, round_.num_draft_tokens))
            expected_ms = drafted_ms(load, shape, round_.accepted_count, begun.prompt_rows)
        else:
            expected_ms = plain_ms(load, begun.prompt_rows)
        experience.observe(
            actual_ms, expected_ms, drafted=round_.speculated, num_sessions=load.num_sessions
        )


def _wall_ms(round_: Round) -> float:
    return (round_.end_ns - round_.start_ns) / 1e6


def _has_failed(round_: Round) -> bool:
    return any(phase.failed for phase in round_.phases)
