"""Trees that follow the load: the size of every round's tree, from costs and running acceptance.

The rule itself is `core.tree_sizing`; here is what it is told: the cost tables that workers
measure, the sessions that share a target, what lies between forwards, and what trees have had
accepted. While trees are small, or the root is alone, one session at a time tries a larger one, and
so the way back is found.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Protocol
from weakref import WeakKeyDictionary

from arborist.core.acceptance import AcceptanceGrid
from arborist.core.cost_table import CostTable
from arborist.core.policy import Eagle2Policy
from arborist.core.shape import TreeShape
from arborist.core.tree_sizing import Load, TreeSize, best_size, drafted_ms, plain_ms
from arborist.orchestrator.round import Round

# Fewest rounds between two tries of a larger tree, and the share of the time they may cost.
PROBE_ROUNDS = 8
_PROBE_SHARE = 0.02
_MAX_CREDIT_ROUNDS = 64
# What lies between forwards is believed up to so many times what they take.
_MOST_REST = 4.0
# Every so many tries are of the whole tree, the others of the next larger one.
_WHOLE_TREE_PROBES = 4
# Sizes that requests ask for are few; the acceptance of so many is kept.
_MAX_LIMITS = 16
_WEIGHT = 0.1
# Rounds of every session after a change between drafting and not, until times count again.
_SETTLING_ROUNDS = 2
# Rounds of every session that such a change is held for at least.
_HOLDING_ROUNDS = 8
# What was learned of the kind of round that is not in use fades by so much a round.
_FADING = 0.002
# Taken for what lies between forwards until it was seen, per session and round.
_FIRST_DRAFTED_MS = 1.0
_UNSEEN_PLAIN_SHARE = 0.3
# Phases of a round whose draft was behind, or whose target was lost.
_CATCHING_UP = ("draft.append", "target.read_features", "target.prefill")


class CostedTarget(Protocol):
    """A target that says what its forwards cost."""

    @property
    def costs(self) -> CostTable | None:
        """Returns what a forward takes; None while it is not known."""
        ...

    @property
    def num_sessions(self) -> int:
        """Returns the sessions that share its forwards."""
        ...


class CostedDraft(Protocol):
    """A draft that says what its forwards cost."""

    @property
    def costs(self) -> CostTable | None:
        """Returns what a forward takes; None while it is not known."""
        ...


class RoundSizer(Protocol):
    """Sizes the trees of one session, round by round."""

    def next_policy(
        self, target: CostedTarget | None, draft: CostedDraft | None
    ) -> Eagle2Policy | None:
        """Returns the policy of the coming round; None = the root alone."""
        ...

    def observe(self, round_: Round) -> None:
        """Learns from a round that was committed."""
        ...


class Experience:
    """What a controller's sessions at one target learn together, and the size they decide on.

    One size for all: forwards and event loops are shared, so that what a size costs can only be
    seen while all have it.
    """

    def __init__(self) -> None:
        """Starts with guesses."""
        self._grids: OrderedDict[TreeShape, AcceptanceGrid] = OrderedDict()
        # What lies between forwards per session, by (drafted, sessions as a power of two).
        self._rest_ms: dict[tuple[bool, int], float] = {}
        self._present: dict[TreeShape, TreeSize] = {}
        self._drafting = True
        self._rounds_to_settle = 0
        self._rounds_to_decision = 0
        self._rounds_since_probe = 0
        self._num_probes = 0
        self._credit_ms = 0.0

    def grid(self, limit: TreeShape) -> AcceptanceGrid:
        """Returns what trees up to a limit have had accepted."""
        grid = self._grids.get(limit)
        if grid is None:
            grid = self._grids[limit] = AcceptanceGrid(limit)
            if len(self._grids) > _MAX_LIMITS:
                self._grids.popitem(last=False)
        self._grids.move_to_end(limit)
        return grid

    def decide(self, limit: TreeShape, grid: AcceptanceGrid, load: Load) -> TreeSize:
        """Returns the size that pays now, looked at again once every session had a round.

        Args:
            limit: The session's largest tree; sessions with other limits decide apart.
            grid: What trees have had accepted.
            load: The load.
        """
        present = self._present.get(limit)
        self._rounds_to_decision -= 1
        if present is not None and self._rounds_to_decision > 0:
            return present
        self._rounds_to_decision = load.num_sessions
        size = best_size(limit, grid, load, present or TreeSize(limit, 0.0))
        self._present[limit] = size
        if len(self._present) > _MAX_LIMITS:
            del self._present[next(iter(self._present))]
        if (size.shape is not None) != self._drafting:
            self._drafting = size.shape is not None
            self._rounds_to_settle = _SETTLING_ROUNDS * load.num_sessions
            # Long enough to know it: a change costs every session a round of catching up.
            self._rounds_to_decision = _HOLDING_ROUNDS * load.num_sessions
        return size

    def probe(self, limit: TreeShape, grid: AcceptanceGrid, load: Load) -> TreeShape | None:
        """Returns a larger tree for one session to try, once the time it may cost is saved up.

        Args:
            limit: The session's largest tree.
            grid: What trees have had accepted.
            load: The load.
        """
        present = self._present[limit]
        self._rounds_since_probe += 1
        if present.shape == limit or self._rounds_since_probe < PROBE_ROUNDS:
            return None
        whole = self._num_probes % _WHOLE_TREE_PROBES == _WHOLE_TREE_PROBES - 1
        shape = limit if whole else _next_larger(present.shape, limit)
        accepted = grid.accepted(shape)
        # Its own share of what the size would take if all had it.
        probe_ms = drafted_ms(load, shape, accepted) / load.num_sessions + load.drafted_overhead_ms
        lost_ms = max(0.0, probe_ms - (1 + accepted) / (present.tokens_per_ms * load.num_sessions))
        if lost_ms > self._credit_ms:
            return None
        self._credit_ms = max(0.0, self._credit_ms - lost_ms)
        self._rounds_since_probe = 0
        self._num_probes += 1
        # It takes time from the others' rounds too.
        self._rounds_to_settle = max(self._rounds_to_settle, load.num_sessions)
        return shape

    def load(self, num_sessions: int, verify: CostTable, draft: CostTable) -> Load:
        """Returns what rounds cost with so many sessions."""
        drafted_ms = self._nearest(True, num_sessions)
        plain_ms = self._nearest(False, num_sessions)
        if drafted_ms is None:
            # What was not seen is taken for cheap against what was, so that it is tried.
            drafted_ms = _FIRST_DRAFTED_MS if plain_ms is None else plain_ms
        if plain_ms is None:
            plain_ms = _UNSEEN_PLAIN_SHARE * drafted_ms
        return Load(num_sessions, verify, draft, drafted_ms, plain_ms)

    def _nearest(self, drafted: bool, num_sessions: int) -> float | None:
        """Returns what was seen with about so many sessions, in milliseconds per session."""
        bucket = _bucket(num_sessions)
        seen = {key: ms for (kind, key), ms in self._rest_ms.items() if kind == drafted}
        return seen[min(seen, key=lambda key: (abs(key - bucket), key))] if seen else None

    def observe(
        self, total_ms: float, forwards_ms: float, *, drafted: bool, num_sessions: int
    ) -> None:
        """Takes a round's times, once all sessions have the present size.

        Args:
            total_ms: The whole round.
            forwards_ms: What its forwards were expected to take.
            drafted: Whether it had a draft.
            num_sessions: Sessions that share the target.
        """
        # No more than a few tries are saved up: later ones shall not crowd.
        credit_ms = self._credit_ms + _PROBE_SHARE * total_ms / num_sessions
        self._credit_ms = min(credit_ms, _MAX_CREDIT_ROUNDS * forwards_ms / num_sessions)
        if self._rounds_to_settle > 0:
            self._rounds_to_settle -= 1
            return
        if drafted != self._drafting:
            return  # A try, or a draft that is gone: the others' forwards made its time.
        # Below zero when forwards take less than the tables say: then it sets them right.
        least_ms = -forwards_ms / num_sessions
        rest_ms = min(
            max(least_ms, (total_ms - forwards_ms) / num_sessions), -_MOST_REST * least_ms
        )
        key = (drafted, _bucket(num_sessions))
        seen = self._rest_ms.get(key)
        if seen is None:
            self._rest_ms[key] = rest_ms
        else:
            # A round that something else held up says little of the next one.
            rest_ms = min(rest_ms, seen + max(abs(seen), -least_ms))
            # Sessions that share a forward saw the same once, not so many times.
            self._rest_ms[key] = seen + _WEIGHT / num_sessions * (rest_ms - seen)
        # What was learned of the other kind fades, so that it is tried again.
        other = (not drafted, key[1])
        if other in self._rest_ms:
            faded = self._rest_ms[other] - _FADING / num_sessions * abs(self._rest_ms[other])
            self._rest_ms[other] = max(faded, least_ms)


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

    def sizer(self, policy: Eagle2Policy) -> TreeSizer:
        """Returns what sizes the trees of a new session.

        Args:
            policy: Its largest tree.
        """
        return TreeSizer(self, policy)


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

    def next_policy(
        self, target: CostedTarget | None, draft: CostedDraft | None
    ) -> Eagle2Policy | None:
        """Returns the policy of the coming round.

        Args:
            target: Verifies it; None = it is gone.
            draft: Drafts for it; None = it is gone or not yet there.
        Returns:
            The policy; None = the root alone.
        """
        self._load = None
        verify = None if target is None else target.costs
        drafting = None if draft is None else draft.costs
        if target is None or verify is None or drafting is None:
            return self._largest
        experience = self._begin_at(target)
        load = experience.load(max(1, target.num_sessions), verify, drafting)
        limit = self._largest.shape
        # Alone, a session's own text counts; among others, that of all: it is known better.
        grid = self._grid if load.num_sessions == 1 else experience.grid(limit)
        size, self._load = experience.decide(limit, grid, load), load
        shape = experience.probe(limit, grid, load) or size.shape
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
        if not _is_ordinary(round_, self._largest.shape):
            return
        total_ms = (round_.end_ns - round_.start_ns) / 1e6
        if round_.speculated:
            shape = TreeShape(
                round_.depth, self._largest.shape.top_k, max(1, round_.num_draft_tokens)
            )
            forwards_ms = drafted_ms(load, shape, round_.accepted_count)
        else:
            forwards_ms = plain_ms(load)
        experience.observe(
            total_ms, forwards_ms, drafted=round_.speculated, num_sessions=load.num_sessions
        )


def _bucket(num_sessions: int) -> int:
    """Returns the nearest power of two: 12 to 22 sessions are alike."""
    return round(math.log2(num_sessions))


def _is_ordinary(round_: Round, limit: TreeShape) -> bool:
    """Returns whether a round's time says what the next one takes: no failure, no catching up."""
    return not any(
        phase.failed
        or phase.name in _CATCHING_UP
        or (phase.name == "draft.extend" and phase.rows > limit.depth + 1)
        for phase in round_.phases
    )


def _next_larger(shape: TreeShape | None, limit: TreeShape) -> TreeShape:
    """Returns a tree a level deeper and with about twice the nodes."""
    depth, nodes = (1, 1) if shape is None else (shape.depth, shape.num_draft_tokens)
    return TreeShape(
        min(depth + 1, limit.depth), limit.top_k, min(2 * nodes + 1, limit.num_draft_tokens)
    )
