"""Trees that follow the load, in a simulated server whose sessions run in step."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from arborist.core.cost_table import CostTable, RowCost
from arborist.core.policy import Eagle2Policy
from arborist.core.shape import TreeShape
from arborist.core.tree import VerifyTree
from arborist.orchestrator.experience import Experiences
from arborist.orchestrator.round import Phase, Round
from arborist.orchestrator.tree_sizer import TreeSizer

LIMIT = TreeShape(4, 4, 16)


@dataclass(eq=False)
class Server:
    """What forwards really take, and what workers say of them.

    Attributes:
        verify: Real times of the target.
        draft: Real times of the draft.
        rest_ms: Per session and drafted round; a plain one takes half of it.
        says: What workers say is so many times the truth.
        num_sessions: Sessions in step.
    """

    verify: CostTable
    draft: CostTable
    rest_ms: float = 0.5
    says: float = 1.0
    num_sessions: int = 1
    keeps_features: bool = True
    prefilled_tokens: int = 0

    @property
    def costs(self) -> CostTable:
        """Returns the target's table."""
        return CostTable([RowCost(r, self.says * self.verify.ms(r)) for r in (1, 16, 64, 1024)])

    @property
    def drafting(self) -> Server:
        """Returns the draft, which has another table."""
        return Server(self.draft, self.draft, says=self.says)

    def round_ms(self, shape: TreeShape | None) -> float:
        """Returns the real time of a round when all sessions have this tree."""
        sessions = self.num_sessions
        if shape is None:
            return self.verify.ms(sessions) + sessions * self.rest_ms / 2
        drafting = self.draft.ms(sessions * 2) + (shape.depth - 1) * self.draft.ms(sessions * 4)
        verify = self.verify.ms(sessions * (1 + shape.num_draft_tokens))
        return drafting + verify + sessions * self.rest_ms


def full_tree(shape: TreeShape) -> VerifyTree:
    """Returns a tree whose best path is its first nodes, one a level."""
    path = list(range(1, shape.depth + 1))[: shape.num_draft_tokens]
    others = shape.num_draft_tokens - len(path)
    parents = [node - 1 for node in path] + [0] * others
    scores = [-0.1 * node for node in path] + [-5.0] * others
    return VerifyTree(list(range(len(parents))), parents, scores, list(range(len(parents))))


def accepted(chance: float, depth: int, rng: random.Random) -> int:
    """Draws how far the best path is accepted."""
    count = 0
    while count < depth and rng.random() < chance:
        count += 1
    return count


def play(
    server: Server,
    sizers: list[TreeSizer],
    chance: float,
    num_rounds: int,
    rng: random.Random,
    catch_up_ms: float = 0.0,
) -> float:
    """Runs rounds of all sessions in step; returns tokens per ms of one session, at the end.

    The first round with a draft after one without takes so much longer for its session.
    """
    tokens = 0.0
    rested = [False] * len(sizers)
    elapsed_ms = 0.0
    for number in range(num_rounds):
        shapes: list[TreeShape | None] = []
        for sizer in sizers:
            policy = sizer.next_policy(server, server.drafting)
            shapes.append(None if policy is None else policy.shape)
        taken = sum(server.round_ms(shape) for shape in shapes) / len(shapes)
        for at, (sizer, shape) in enumerate(zip(sizers, shapes, strict=True)):
            late_ms = catch_up_ms if rested[at] and shape is not None else 0.0
            rested[at] = shape is None
            round_ = Round(number, 10, 1, 0, 0, end_ns=int((taken + late_ms) * 1e6))
            if shape is not None:
                count = accepted(chance, shape.depth, rng)
                round_.tree, round_.depth = full_tree(shape), shape.depth
                round_.accepted_nodes = tuple(range(1, count + 1))
                round_.speculated = True
            sizer.observe(round_)
            if number >= num_rounds // 2:
                tokens += (1 + round_.accepted_count) / len(sizers)
        if number >= num_rounds // 2:
            elapsed_ms += taken
    return tokens / elapsed_ms


def fixed(server: Server, shape: TreeShape | None, chance: float) -> float:
    """Returns tokens per ms of one session when its trees are always these."""
    depth = 0 if shape is None else shape.depth
    expected = 1 + sum(chance**level for level in range(1, depth + 1))
    return expected / server.round_ms(shape)


FLAT = CostTable([RowCost(1, 10), RowCost(64, 14), RowCost(1024, 200)])
STEEP = CostTable([RowCost(1, 2), RowCost(1024, 1500)])
CHEAP = CostTable([RowCost(1, 1), RowCost(64, 2), RowCost(1024, 20)])


@pytest.mark.parametrize("chance", [0.2, 0.9])
@pytest.mark.parametrize("num_sessions", [1, 16])
@pytest.mark.parametrize(("verify", "says"), [(FLAT, 1.0), (STEEP, 1.0), (FLAT, 1.5), (STEEP, 0.7)])
def test_a_server_is_about_as_fast_as_with_the_better_of_trees_and_none(
    chance: float, num_sessions: int, verify: CostTable, says: float
) -> None:
    """At every load, also when the tables of costs are wrong by half."""
    server = Server(verify, CHEAP, says=says, num_sessions=num_sessions)
    experiences = Experiences()
    sizers = [TreeSizer(experiences, Eagle2Policy(LIMIT)) for _ in range(num_sessions)]

    rate = play(server, sizers, chance, 400, random.Random(7))

    assert rate >= 0.9 * max(fixed(server, LIMIT, chance), fixed(server, None, chance))


@pytest.mark.parametrize("catch_up_ms", [0.0, 2000.0])
def test_a_server_that_was_full_drafts_again_once_it_is_idle(catch_up_ms: float) -> None:
    """What was learned under load does not hold it back, nor what tries have cost there."""
    busy = Server(STEEP, CHEAP, num_sessions=64)
    experiences = Experiences()
    sizers = [TreeSizer(experiences, Eagle2Policy(LIMIT)) for _ in range(64)]
    play(busy, sizers, 0.3, 200, random.Random(1), catch_up_ms)
    at_load = [sizer.next_policy(busy, busy.drafting) for sizer in sizers]
    idle = Server(FLAT, CHEAP, num_sessions=1)

    play(idle, sizers[:1], 0.9, 400, random.Random(2))
    policy = sizers[0].next_policy(idle, idle.drafting)

    assert sum(one is None for one in at_load) > 56
    assert policy is not None
    assert policy.shape.depth >= 3


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_sessions_seldom_change_their_mind(noise: float) -> None:
    """Each change costs every session a round of catching up; noisy times are no reason."""
    server = Server(STEEP, CHEAP, num_sessions=16)
    experiences, rng = Experiences(), random.Random(5)
    sizers = [TreeSizer(experiences, Eagle2Policy(LIMIT)) for _ in range(16)]
    changes = 0
    before = experiences.of(server).rests(server.num_sessions)
    for number in range(1000):
        for sizer in sizers:
            policy = sizer.next_policy(server, server.drafting)
            shape = None if policy is None else policy.shape
            taken = server.round_ms(shape) * (1 + noise * rng.random())
            round_ = Round(number, 10, 1, 0, 0, end_ns=int(taken * 1e6))
            if shape is not None:
                round_.tree, round_.depth, round_.speculated = full_tree(shape), shape.depth, True
                round_.accepted_nodes = tuple(range(1, accepted(0.5, shape.depth, rng) + 1))
            sizer.observe(round_)
        changes += experiences.of(server).rests(16) != before
        before = experiences.of(server).rests(server.num_sessions)

    assert before
    assert changes <= 5


def test_a_session_at_rest_tries_the_whole_tree_now_and_then() -> None:
    """Small ones often, the whole one seldom: it may cost a fiftieth of the time."""
    server = Server(STEEP, CHEAP, num_sessions=64)
    sizer = TreeSizer(Experiences(), Eagle2Policy(LIMIT))
    tried_ms = 0.0
    shapes = set()
    for number in range(6000):
        policy = sizer.next_policy(server, server.drafting)
        round_ = Round(number, 10, 1, 0, 0, end_ns=int(server.round_ms(None) * 1e6))
        if policy is not None:
            shapes.add(policy.shape)
            tried_ms += server.round_ms(policy.shape)
            round_.tree, round_.depth, round_.speculated = full_tree(policy.shape), 1, True
        sizer.observe(round_)

    assert LIMIT in shapes
    assert len(shapes) > 1
    assert tried_ms < 0.05 * 6000 * server.round_ms(None)


def test_without_costs_the_largest_tree_is_drafted() -> None:
    """As with a worker of an older version, or in process."""

    class Silent:
        keeps_features = True
        costs = None
        num_sessions = 9
        prefilled_tokens = 0

    policy = TreeSizer(Experiences(), Eagle2Policy(LIMIT)).next_policy(Silent(), Silent())

    assert policy is not None
    assert policy.shape == LIMIT


def test_where_a_draft_could_not_be_told_what_it_missed_it_never_rests() -> None:
    """The target keeps no features: a rest would be for good."""
    server = Server(STEEP, CHEAP, num_sessions=64, keeps_features=False)
    sizer = TreeSizer(Experiences(), Eagle2Policy(LIMIT))
    for number in range(200):
        policy = sizer.next_policy(server, server.drafting)
        assert policy is not None
        assert policy.shape == LIMIT
        sizer.observe(Round(number, 10, 1, 0, 0, end_ns=10**9))

    assert not sizer.rests_at(server)


def test_sessions_with_other_largest_trees_go_over_together() -> None:
    """Each kind decides its sizes by its own count of rounds; whether to draft is one choice."""
    server = Server(STEEP, CHEAP, num_sessions=16)
    experiences, rng = Experiences(), random.Random(2)
    limits = [LIMIT, TreeShape(2, 4, 8)]
    sizers = [TreeSizer(experiences, Eagle2Policy(limits[at % 2])) for at in range(16)]

    play(server, sizers, 0.3, 300, rng)
    policies = [sizer.next_policy(server, server.drafting) for sizer in sizers]

    assert experiences.of(server).rests(server.num_sessions)
    assert sum(one is None for one in policies) >= 15


def test_a_failed_round_says_nothing_of_time() -> None:
    """A command that waited for its deadline is no cost of drafting."""
    server = Server(FLAT, CHEAP)
    experiences = Experiences()
    sizer = TreeSizer(experiences, Eagle2Policy(LIMIT))
    sizer.next_policy(server, server.drafting)
    before = experiences.of(server).load(1, FLAT, CHEAP)
    failed = Phase("draft.extend", 0, 0, 250_000_000, remote=True, failed="DEADLINE")

    sizer.observe(Round(0, 10, 1, 0, 0, end_ns=260_000_000, phases=[failed]))

    assert experiences.of(server).load(1, FLAT, CHEAP).drafted_slowdown == before.drafted_slowdown
