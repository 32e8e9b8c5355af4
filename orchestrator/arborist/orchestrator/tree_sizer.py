"""Trees that follow the load: the size of one session's trees, round by round.

The rule itself is `core.tree_sizing`; what it is told is `Experience`: the cost tables that workers
measure, the sessions that share a target, how much longer rounds really take, and what trees have
had accepted.
"""

from __future__ import annotations

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

    def next_policy(
        self, target: CostedTarget | None, draft: CostedDraft | None
    ) -> Eagle2Policy | None:
        """Returns the policy of the coming round; None = the root alone."""
        ...

    def observe(self, round_: Round) -> None:
        """Learns from a round that was committed."""
        ...


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
        self._experience: Experience | None = None
        self._grid = AcceptanceGrid(policy.shape)
        self._load: Load | None = None
        self._probes = False

    def rests_at(self, target: CostedTarget) -> bool:
        """Returns whether a session that begins at a target needs no draft yet.

        Args:
            target: Where it was opened.
        """
        return target.keeps_features and self._experiences.of(target).rests

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
        self._load = None
        if target is None or not target.keeps_features:
            return self._largest
        experience = self._begin_at(target)
        if draft is not None:
            experience.draft_costs = draft.costs
        verify, drafting = target.costs, experience.draft_costs
        if verify is None or drafting is None:
            return self._largest
        load = experience.load(max(1, target.num_sessions), verify, drafting)
        limit = self._largest.shape
        # Alone, a session's own text counts; among others, that of all: it is known better.
        grid = self._grid if load.num_sessions == 1 else experience.grid(limit)
        size, self._load = experience.decide(limit, grid, load), load
        tried = experience.probe(limit, grid, load)
        self._probes = tried is not None
        shape = tried or size.shape
        return None if shape is None else self._largest.resized(shape)

    def _begin_at(self, target: CostedTarget) -> Experience:
        """Returns what is known of a target; the first one's trees are where the session begins."""
        experience = self._experiences.of(target)
        if self._experience is None:
            self._grid = experience.grid(self._largest.shape).copy()
        self._experience = experience
        return experience

    def observe(self, round_: Round) -> None:
        """Learns from a round that was committed."""
        load, experience = self._load, self._experience
        if load is None or experience is None:
            return
        if round_.speculated:
            for grid in (self._grid, experience.grid(self._largest.shape)):
                grid.observe(round_.tree, round_.depth, round_.accepted_nodes)
        if any(phase.failed for phase in round_.phases):
            return  # Its time says nothing of the next round's.
        actual_ms = (round_.end_ns - round_.start_ns) / 1e6
        if self._probes:
            # Its time is the others' forwards and its own draft's catching up.
            tokens = 1 + round_.accepted_count
            experience.observe_probe(self._largest.shape, actual_ms, tokens, load.num_sessions)
            return
        if round_.speculated:
            shape = TreeShape(
                round_.depth, self._largest.shape.top_k, max(1, round_.num_draft_tokens)
            )
            expected_ms = drafted_ms(load, shape, round_.accepted_count)
        else:
            expected_ms = plain_ms(load)
        experience.observe(
            actual_ms, expected_ms, drafted=round_.speculated, num_sessions=load.num_sessions
        )
