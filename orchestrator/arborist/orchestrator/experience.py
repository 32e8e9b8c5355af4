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
    root_alone,
    tree_size,
)
from arborist.orchestrator.pace import Paces, load_bucket

# Sizes that requests ask for are few; what is known of so many is kept.
_MAX_LIMITS = 16
# Fewest rounds of the sessions together between two decisions.
_DECISION_ROUNDS = 8
# Rounds of every session after a change between drafting and not, until times count again: drafts
# catch up, and sessions come to share forwards anew.
_SETTLING_ROUNDS = 4
# Then so many rounds of every session, and so many in all, are its trial.
_TRIAL_ROUNDS_OF_EACH = 6
_FEWEST_TRIAL_ROUNDS = 24
# A trial that is not had in so many times its rounds, since drafts fail, is given up.
_MOST_TRIAL_ROUNDS = 3
# Drafting, or not, is taken up when it promises so many times the present tokens per time,
_CLEARLY_BETTER = 1.1
# and tried when it promises so many times, once the time that this may lose is saved up.
_WORTH_A_TRIAL = 0.75
# A trial is expected to lose this share of its time at least; each that led to nothing makes the
# next one so many times as dear.
_LEAST_LOSS = 0.1
_BACKOFF = 2.0
_MOST_BACKOFF = 16.0
# Share of the time that may be lost to trials; as much again to larger trees tried by single
# sessions.
_LOSS_SHARE = 0.01
_MOST_SAVED_MS = 4000.0
# Fewest rounds between two larger trees tried; every so many tries are of the whole tree.
_PROBE_ROUNDS = 8
_WHOLE_TREE_PROBES = 4
# Rows that a draft lacks when a single session tries a tree while others rest, at first; what
# tries really took, over what they were expected to take, is learned up to a factor.
_ROWS_BEHIND = 128
_DEAREST_PROBE = 16.0
_PROBE_WEIGHT = 0.2


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


class Savings:
    """Time that may be lost to tries, saved up as time goes by."""

    def __init__(self) -> None:
        """Starts without any."""
        self._saved_ms = 0.0

    def add(self, passed_ms: float) -> None:
        """Saves a share of time that passed."""
        self._saved_ms = min(self._saved_ms + _LOSS_SHARE * passed_ms, _MOST_SAVED_MS)

    def spend(self, lost_ms: float) -> bool:
        """Takes what a try may lose; returns False, and takes nothing, if so much is not there."""
        if lost_ms > self._saved_ms:
            return False
        self._saved_ms -= lost_ms
        return True


class Experience:
    """What was learned at one target.

    All sessions draft, or none does: forwards and event loops are shared, so that what drafting
    costs can only be seen while all do. A single session now and then tries a larger tree, which
    tells what is accepted; all together now and then try the other way, if it might pay.
    """

    def __init__(self) -> None:
        """Starts with guesses, drafting."""
        self.draft_costs: CostTable | None = None
        """What the draft said last; sessions that never asked it decide by it."""
        self._paces = Paces()
        self._grids: OrderedDict[TreeShape, AcceptanceGrid] = OrderedDict()
        self._present: OrderedDict[TreeShape, TreeSize] = OrderedDict()
        self._rounds_to_decision: dict[TreeShape, int] = {}
        self._drafting = True
        self._on_trial = False
        self._rounds_to_settle = 0
        self._rounds_of_trial = 0
        self._rounds_to_give_up = 0
        self._rounds_since_probe = 0
        self._num_probes = 0
        self._saved_for_trials = Savings()
        self._saved_for_probes = Savings()
        # By sessions as a power of two.
        self._backoffs: dict[int, float] = {}
        self._probe_factors: dict[int, float] = {}
        self._change_costs_ms: dict[int, float] = {}
        # Of the last larger tree tried, and of the last change.
        self._expected_loss_ms = 0.0
        self._change_cost_ms = 0.0

    @property
    def rests(self) -> bool:
        """Returns whether sessions decode plainly at present."""
        return not self._drafting

    @property
    def _is_trying(self) -> bool:
        trial = self._rounds_of_trial > 0 and self._rounds_to_give_up > 0
        return self._rounds_to_settle > 0 or trial

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
        """Returns what rounds cost with so many sessions."""
        drafted = self._paces.slowdown(drafted=True, num_sessions=num_sessions)
        plain = self._paces.slowdown(drafted=False, num_sessions=num_sessions)
        return Load(num_sessions, verify, draft, drafted, plain)

    def decide(self, limit: TreeShape, grid: AcceptanceGrid, load: Load) -> TreeSize:
        """Returns the size that pays now, looked at again once every session had a round.

        Args:
            limit: The session's largest tree; sessions with other limits choose their sizes apart,
                but draft, or do not, together.
            grid: What trees have had accepted.
            load: The load.
        """
        present = self._present.get(limit)
        left = self._rounds_to_decision.get(limit, 0) - 1
        self._rounds_to_decision[limit] = left
        if present is not None and left > 0 and (present.shape is not None) == self._drafting:
            return present
        self._rounds_to_decision[limit] = max(load.num_sessions, _DECISION_ROUNDS)
        if grid.is_known:
            tree = best_tree(limit, grid, load, present.shape if present else limit)
        else:
            tree = tree_size(limit, grid, load)  # It tells most.
        root = root_alone(load)
        self._choose(tree, root, grid, load)
        self._present[limit] = size = tree if self._drafting else root
        self._present.move_to_end(limit)
        if len(self._present) > _MAX_LIMITS:
            oldest, _ = self._present.popitem(last=False)
            del self._rounds_to_decision[oldest]
        return size

    def _choose(self, tree: TreeSize, root: TreeSize, grid: AcceptanceGrid, load: Load) -> None:
        """Goes over to drafting, or away from it, to stay or to try it."""
        if self._is_trying:
            return
        now, other = (tree, root) if self._drafting else (root, tree)
        gain = other.tokens_per_ms / now.tokens_per_ms
        sessions = load.num_sessions
        bucket = load_bucket(sessions)
        backoff = self._backoffs.get(bucket, 1.0)
        if self._on_trial:
            self._on_trial = False
            told = self._paces.is_known(drafted=self._drafting, num_sessions=sessions)
            if told and gain <= 1.0:
                self._backoffs[bucket] = 1.0
            else:
                self._backoffs[bucket] = min(_BACKOFF * backoff, _MOST_BACKOFF)
                self._change(sessions, on_trial=False)
            return
        if gain < _WORTH_A_TRIAL:
            return
        lost_ms = max(_LEAST_LOSS, 1.0 - gain) * self._trial_ms(other, grid, load) * backoff
        seen = self._paces.is_known(drafted=not self._drafting, num_sessions=sessions)
        lost_ms += self._change_costs_ms.get(bucket, 0.0)
        free = gain > _CLEARLY_BETTER and (seen or backoff == 1.0)
        if free or self._saved_for_trials.spend(lost_ms):
            self._change(sessions, on_trial=True)

    def _change(self, num_sessions: int, *, on_trial: bool) -> None:
        self._drafting = not self._drafting
        self._on_trial = on_trial
        self._rounds_to_settle = _SETTLING_ROUNDS * num_sessions
        self._change_cost_ms = 0.0
        self._rounds_of_trial = 0
        if on_trial:
            self._paces.forget(drafted=self._drafting, num_sessions=num_sessions)
            rounds = max(_FEWEST_TRIAL_ROUNDS, _TRIAL_ROUNDS_OF_EACH * num_sessions)
            self._rounds_of_trial = rounds
            self._rounds_to_give_up = _MOST_TRIAL_ROUNDS * rounds

    def _trial_ms(self, size: TreeSize, grid: AcceptanceGrid, load: Load) -> float:
        """Returns how long a trial takes, to settle included."""
        rounds = _SETTLING_ROUNDS + max(
            _TRIAL_ROUNDS_OF_EACH, _FEWEST_TRIAL_ROUNDS / load.num_sessions
        )
        if size.shape is None:
            return rounds * load.plain_slowdown * plain_ms(load)
        accepted = grid.accepted(size.shape)
        return rounds * load.drafted_slowdown * drafted_ms(load, size.shape, accepted)

    def probe(self, limit: TreeShape, grid: AcceptanceGrid, load: Load) -> TreeShape | None:
        """Returns a larger tree for one session to try, once the time it may cost is saved up.

        Args:
            limit: The session's largest tree.
            grid: What trees have had accepted.
            load: The load.
        """
        present = self._present[limit]
        self._rounds_since_probe += 1
        too_soon = self._is_trying or self._rounds_since_probe < _PROBE_ROUNDS
        if too_soon or present.shape == limit:
            return None
        whole = self._num_probes % _WHOLE_TREE_PROBES == _WHOLE_TREE_PROBES - 1
        shape = limit if whole else _next_larger(present.shape, limit)
        accepted = grid.accepted(shape)
        # Its own share of what the size would take if all had it.
        probe_ms = load.drafted_slowdown * drafted_ms(load, shape, accepted) / load.num_sessions
        if present.shape is None:
            probe_ms += load.draft.ms(_ROWS_BEHIND)
        lost_ms = max(0.0, probe_ms - (1 + accepted) / (present.tokens_per_ms * load.num_sessions))
        price_ms = lost_ms * self._probe_factors.get(load_bucket(load.num_sessions), 1.0)
        if not self._saved_for_probes.spend(price_ms):
            return None
        self._expected_loss_ms = lost_ms
        self._rounds_since_probe = 0
        self._num_probes += 1
        return shape

    def observe_probe(
        self, limit: TreeShape, actual_ms: float, num_tokens: int, num_sessions: int
    ) -> None:
        """Takes the time of a larger tree that a session tried.

        What it took beyond its tokens' worth, a draft's catching up above all, makes later ones at
        about as many sessions dearer.

        Args:
            limit: The session's largest tree.
            actual_ms: The whole round.
            num_tokens: What it brought.
            num_sessions: Sessions that share the target.
        """
        present = self._present.get(limit)
        if present is None or self._expected_loss_ms <= 0.0:
            return
        bucket = load_bucket(num_sessions)
        lost_ms = max(0.0, actual_ms - num_tokens / present.tokens_per_ms)
        factor = min(max(lost_ms / self._expected_loss_ms, 1.0), _DEAREST_PROBE)
        seen = self._probe_factors.get(bucket, factor)
        self._probe_factors[bucket] = seen + _PROBE_WEIGHT * (factor - seen)

    def observe(
        self, actual_ms: float, expected_ms: float, *, drafted: bool, num_sessions: int
    ) -> None:
        """Takes the time of a session's round.

        Args:
            actual_ms: The whole round.
            expected_ms: What its forwards and trips would take undisturbed.
            drafted: Whether it had a draft.
            num_sessions: Sessions that share the target.
        """
        # Rounds of all sessions pass at the same time.
        self._saved_for_trials.add(actual_ms / num_sessions)
        self._saved_for_probes.add(actual_ms / num_sessions)
        if self._rounds_to_settle > 0:
            self._rounds_to_settle -= 1
            if drafted:
                # Catching up takes what it takes; the next trial of as many is to pay for it.
                self._change_cost_ms += max(0.0, actual_ms - expected_ms) / num_sessions
                self._change_costs_ms[load_bucket(num_sessions)] = self._change_cost_ms
            return
        self._rounds_to_give_up = max(0, self._rounds_to_give_up - 1)
        if drafted != self._drafting:
            return  # A draft that is gone: the others' forwards made its time.
        self._rounds_of_trial = max(0, self._rounds_of_trial - 1)
        self._paces.observe(actual_ms, expected_ms, drafted=drafted, num_sessions=num_sessions)


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


def _next_larger(shape: TreeShape | None, limit: TreeShape) -> TreeShape:
    """Returns a tree a level deeper and with about twice the nodes."""
    depth, nodes = (1, 1) if shape is None else (shape.depth, shape.num_draft_tokens)
    return TreeShape(
        min(depth + 1, limit.depth), limit.top_k, min(2 * nodes + 1, limit.num_draft_tokens)
    )
