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
        load: The load.
        prefilled_tokens: Of the target, so far.
        probes: Whether this one tries a larger tree than the others.
    """

    target: CostedTarget
    load: Load
    prefilled_tokens: int
    probes: bool

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
        self._experience: Experience | None = None
        self._grid: AcceptanceGrid | None = None
        self._begun: _Begun | None = None

    def rests_at(self, target: CostedTarget) -> bool:
        """Returns whether a session that begins at a target needs no draft yet.

        Args:
            target: Where it was opened.
        """
        self._experience = None
        if not target.keeps_features:
            return False
        self._experience = self._experiences.of(target)
        return self._experience.rests(max(1, target.num_sessions))

    def observe_prefill(self, round_: Round) -> None:
        """Learns how long prompts are.

        Args:
            round_: The session's prefill.
        """
        if self._experience is not None:
            self._experience.began(round_.prefix_length - round_.num_reused)

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
            self._experience = None
            return self._largest
        limit, experience = self._largest.shape, self._experiences.of(target)
        if experience is not self._experience:
            experience.began(0)  # It came from elsewhere.
            self._experience = experience
        if self._grid is None:
            self._grid = experience.grid(limit).copy()  # The others' trees are where it begins.
        if draft is not None:
            experience.draft_costs = draft.costs
        verify, drafting = target.costs, experience.draft_costs
        if verify is None or drafting is None:
            return self._largest
        num_sessions = max(1, target.num_sessions)
        present = experience.present(limit, num_sessions)
        if present is not None:
            return self._policy_of(present.shape)
        load = experience.load(num_sessions, verify, drafting)
        # Alone, a session's own text counts; among others, that of all: it is known better.
        grid = self._grid if load.num_sessions == 1 else experience.grid(limit)
        size = experience.decide(limit, grid, load)
        tried = experience.probe(limit, grid, load)
        shape = tried or size.shape
        self._begun = _Begun(target, load, target.prefilled_tokens, probes=tried is not None)
        return self._policy_of(shape)

    def _policy_of(self, shape: TreeShape | None) -> Eagle2Policy | None:
        return None if shape is None else self._largest.resized(shape)

    def observe(self, round_: Round) -> None:
        """Learns from a round that was committed."""
        begun, experience, limit = self._begun, self._experience, self._largest.shape
        if experience is None or self._grid is None:
            return
        tokens = 1 + round_.accepted_count
        experience.decoded(tokens)
        if round_.speculated:
            for grid in (self._grid, experience.grid(limit)):
                grid.observe(round_.tree, round_.depth, round_.accepted_nodes)
        if begun is None or _has_failed(round_):
            return  # Nothing is told of its time, or it says nothing of the next round's.
        load, actual_ms = begun.load, round_.wall_ms
        if begun.probes:
            # Its time is the others' forwards and its own draft's catching up.
            experience.observe_probe(limit, actual_ms, tokens)
            return
        if round_.speculated:
            shape = TreeShape(round_.depth, limit.top_k, max(1, round_.num_draft_tokens))
            expected_ms = drafted_ms(load, shape, round_.accepted_count)
        else:
            expected_ms = plain_ms(load)
        experience.observe(
            load, actual_ms, expected_ms, begun.prompt_rows, drafted=round_.speculated
        )


def _has_failed(round_: Round) -> bool:
    return any(phase.failed for phase in round_.phases)
