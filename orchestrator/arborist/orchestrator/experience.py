"""What a controller's sessions at one target learn together, and the size they decide on."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol
from weakref import WeakKeyDictionary

from arborist.core.acceptance import AcceptanceGrid
from arborist.core.cost_table import CostTable
from arborist.core.shape import TreeShape
from arborist.core.tree_sizing import (
    Load,
    TreeSize,
    best_tree,
    drafted_ms,
    plain_ms,
    prompt_ms,
    root_alone,
    tree_size,
)
from arborist.orchestrator.drafting_choice import DraftingChoice
from arborist.orchestrator.load_level import LoadLevel, witness_stride
from arborist.orchestrator.pace import Paces
from arborist.orchestrator.probes import Probes
from arborist.orchestrator.session_lengths import SessionLengths

# Sizes that requests ask for are few; what is known of so many is kept.
_MAX_LIMITS = 16
# Rounds that are told of between two decisions.
_DECISION_ROUNDS = 8


class CostedTarget(Protocol):
    """A target that says what its forwards cost."""

    @property
    def costs(self) -> CostTable | None:
        """Returns what a forward takes; None while it is not known."""
        ...

    @property
    def keeps_features(self) -> bool:
        """Returns whether a draft that rested can be told what it missed."""
        ...

    @property
    def num_sessions(self) -> int:
        """Returns the sessions that share its forwards."""
        ...

    @property
    def prefilled_tokens(self) -> int:
        """Returns the prompt tokens that its forwards computed so far, as far as it is known."""
        ...


class Experience:
    """What was learned at one target.

    What trees have had accepted, how long rounds take at each level of load, whether sessions
    draft there, and which larger trees single ones try.
    """

    def __init__(self) -> None:
        """Starts with guesses, drafting."""
        self.draft_costs: CostTable | None = None
        """What the draft said last; sessions that never asked it decide by it."""
        self._level = LoadLevel()
        self._paces = Paces()
        self._choice = DraftingChoice()
        self._probes = Probes()
        self._lengths = SessionLengths()
        self._grids: OrderedDict[TreeShape, AcceptanceGrid] = OrderedDict()
        self._present: OrderedDict[TreeShape, TreeSize] = OrderedDict()
        self._rounds_to_decision: dict[TreeShape, int] = {}
        self._rounds = 0

    def rests(self, num_sessions: int) -> bool:
        """Takes a session that begins; returns whether it needs no draft.

        Args:
            num_sessions: Sessions that share the target now, this one included.
        """
        self._follow(num_sessions)
        if num_sessions == 1:
            self._choice.begin_alone()
        return self._choice.rests

    def grid(self, limit: TreeShape) -> AcceptanceGrid:
        """Returns what trees up to a limit have had accepted."""
        grid = self._grids.get(limit)
        if grid is None:
            grid = self._grids[limit] = AcceptanceGrid(limit)
            if len(self._grids) > _MAX_LIMITS:
                self._grids.popitem(last=False)
        self._grids.move_to_end(limit)
        return grid

    def load(self, num_sessions: int, verify: CostTable, draft: CostTable) -> Load:
        """Returns what rounds cost with so many sessions, who are the load from now on."""
        self._follow(num_sessions)
        return Load(
            num_sessions,
            verify,
            draft,
            self._paces.slowdown(drafted=True, level=self._level.value),
            self._paces.slowdown(drafted=False, level=self._level.value),
            self._lengths.output_tokens,
            self._lengths.prompt_tokens,
        )

    def decide(self, limit: TreeShape, grid: AcceptanceGrid, load: Load) -> TreeSize:
        """Returns the size that pays now, looked at again after some rounds.

        Args:
            limit: The session's largest tree; sessions with other limits choose their sizes apart,
                but draft, or do not, together.
            grid: What trees have had accepted.
            load: The load.
        """
        in_use = self._in_use(limit)
        left = self._rounds_to_decision.get(limit, 0) - 1
        self._rounds_to_decision[limit] = left
        if in_use is not None and left > 0:
            return in_use
        self._rounds_to_decision[limit] = _DECISION_ROUNDS
        present = self._present.get(limit)
        if grid.is_known:
            tree = best_tree(limit, grid, load, present.shape if present else None)
        else:
            tree = tree_size(limit, grid, load)  # It tells most.
        root = root_alone(load)
        self._choose(tree, root, grid, load)
        self._present[limit] = size = tree if self._choice.drafts else root
        self._present.move_to_end(limit)
        if len(self._present) > _MAX_LIMITS:
            oldest, _ = self._present.popitem(last=False)
            self._rounds_to_decision.pop(oldest, None)
        return size

    def present(self, limit: TreeShape, num_sessions: int) -> TreeSize | None:
        """Returns the size in use, for a round that nothing is told of; None = it is to be told.

        Of sessions who share their forwards some rounds tell enough, fewer while nothing is being
        found out: what is spent on telling is spent between forwards.

        Args:
            limit: The session's largest tree.
            num_sessions: Sessions that share the target.
        """
        self._rounds += 1
        if self._rounds % self._stride(num_sessions) == 0:
            return None
        if not self._level.covers(num_sessions):
            return None
        return self._in_use(limit)

    def probe(self, limit: TreeShape, grid: AcceptanceGrid, load: Load) -> TreeShape | None:
        """Returns a larger tree for one session to try; None = it is as the others.

        Args:
            limit: The session's largest tree.
            grid: What trees have had accepted.
            load: The load.
        """
        if not self._choice.is_settled:
            return None
        return self._probes.next_shape(limit, self._present[limit], grid, load, self._level.value)

    def observe_probe(self, limit: TreeShape, actual_ms: float, num_tokens: int) -> None:
        """Takes the time of a larger tree that a session tried.

        Args:
            limit: The session's largest tree.
            actual_ms: The whole round.
            num_tokens: What it brought.
        """
        present = self._present.get(limit)
        if present is not None:
            lost_ms = max(0.0, actual_ms - num_tokens / present.tokens_per_ms)
            self._probes.observe(lost_ms, self._level.value)

    def began(self, prompt_tokens: int) -> None:
        """Takes a session whose prompt was computed.

        Args:
            prompt_tokens: Of the prompt, without those known from earlier sessions.
        """
        self._lengths.began(prompt_tokens)

    def decoded(self, tokens: int) -> None:
        """Takes how many tokens a session's round brought."""
        self._lengths.decoded(tokens)

    def observe(
        self, load: Load, actual_ms: float, expected_ms: float, prompt_rows: int, *, drafted: bool
    ) -> None:
        """Takes the time of a session's round.

        Args:
            load: When it began.
            actual_ms: The whole round.
            expected_ms: What its forwards and trips would take undisturbed.
            prompt_rows: Rows of prompts that were computed meanwhile.
            drafted: Whether it had a draft.
        """
        # Witnesses' rounds pass at the same time.
        self._probes.add(actual_ms * self._stride(load.num_sessions) / load.num_sessions)
        if not self._level.covers(load.num_sessions):
            return  # It began under another load.
        of_prompts_ms = prompt_ms(load, prompt_rows)
        slowdown = load.drafted_slowdown if drafted else load.plain_slowdown
        usual_ms = slowdown * (expected_ms + of_prompts_ms)
        if self._choice.observe(actual_ms, usual_ms, drafted=drafted):
            pace = self._paces.at(drafted=drafted, level=self._level.value)
            pace.observe(actual_ms, expected_ms, of_prompts_ms)

    def _stride(self, num_sessions: int) -> int:
        return witness_stride(num_sessions, calm=self._choice.is_calm)

    def _in_use(self, limit: TreeShape) -> TreeSize | None:
        """Returns the size decided last; None before the first, or if sessions went over since."""
        size = self._present.get(limit)
        if size is None or (size.shape is not None) != self._choice.drafts:
            return None
        return size

    def _follow(self, num_sessions: int) -> None:
        if self._level.follow(num_sessions):
            self._choice.move_to(self._level)
            self._rounds_to_decision.clear()

    def _choose(self, tree: TreeSize, root: TreeSize, grid: AcceptanceGrid, load: Load) -> None:
        """Goes over to drafting, or away from it, to stay or to try it."""
        now, other = (tree, root) if self._choice.drafts else (root, tree)
        level, drafts = self._level.value, self._choice.drafts
        self._choice.consider(
            other.tokens_per_ms / now.tokens_per_ms,
            _round_ms(other, grid, load),
            present_is_known=self._paces.at(drafted=drafts, level=level).is_known,
            other_is_known=self._paces.at(drafted=not drafts, level=level).is_known,
        )


class Experiences:
    """What a controller knows of each of its targets, for as long as it is connected to it."""

    def __init__(self) -> None:
        """Knows none."""
        self._of: WeakKeyDictionary[CostedTarget, Experience] = WeakKeyDictionary()

    def of(self, target: CostedTarget) -> Experience:
        """Returns what is known of a target."""
        experience = self._of.get(target)  # Once a round: `setdefault` would make one each time.
        if experience is None:
            experience = self._of[target] = Experience()
        return experience


def _round_ms(size: TreeSize, grid: AcceptanceGrid, load: Load) -> float:
    """Returns how long a round of a size takes."""
    if size.shape is None:
        return load.plain_slowdown * plain_ms(load)
    return load.drafted_slowdown * drafted_ms(load, size.shape, grid.accepted(size.shape))
