"""Rounds whose tree is the root alone because drafting would not pay: the draft rests."""

from __future__ import annotations

import random

import pytest
from tests.unit.orchestrator.decoding import MAX_TOKENS, PROMPT, SHAPE, decode, make_decoder
from tests.unit.orchestrator.fake_workers import (
    FakeDraft,
    FakeLanguageModelDraft,
    FakeTarget,
    FakeWorkers,
    plain_decode,
)

from arborist.core.errors import UnavailableError
from arborist.core.policy import Eagle2Policy
from arborist.core.policy_settings import DRAFT_CALLS, DraftCalls
from arborist.core.sampling import SamplingParams
from arborist.core.shape import TreeShape
from arborist.orchestrator.experience import CostedTarget
from arborist.orchestrator.round import Round
from arborist.orchestrator.tree_sizer import CostedDraft

EXPECTED = plain_decode(PROMPT, MAX_TOKENS, SamplingParams())
DRAFTS = pytest.mark.parametrize("draft_type", [FakeDraft, FakeLanguageModelDraft])


class ScriptedSizer:
    """Drafts in the rounds it is told to, with a tree of any size."""

    def __init__(self, drafts: list[bool]) -> None:
        self.drafts = drafts
        self.rounds: list[Round] = []
        self.prefills: list[Round] = []
        self.rng = random.Random(3)

    def rests_at(self, target: CostedTarget) -> bool:
        """Returns whether the first round is drafted."""
        return not self.drafts[0]

    def observe_prefill(self, round_: Round) -> None:
        """Keeps it."""
        self.prefills.append(round_)

    def next_policy(
        self, target: CostedTarget | None, draft: CostedDraft | None
    ) -> Eagle2Policy | None:
        """Returns a small or a large tree, or none."""
        if not self.drafts[len(self.rounds) % len(self.drafts)]:
            return None
        return Eagle2Policy(
            TreeShape(self.rng.randint(1, SHAPE.depth), SHAPE.top_k, self.rng.randint(1, 10))
        )

    def observe(self, round_: Round) -> None:
        """Keeps the round."""
        self.rounds.append(round_)


PATTERNS = [
    [False],
    [False, True],
    [True, False, False, False, True],
    [False] * 5 + [True] * 2,
    [True] * 3 + [False],
]


@pytest.mark.parametrize("draft_calls", DRAFT_CALLS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@DRAFTS
async def test_a_draft_that_rests_now_and_then_changes_no_token(
    draft_type: type[FakeDraft], pattern: list[bool], draft_calls: DraftCalls
) -> None:
    """And it has every pair in order when it is asked again: the fake draft checks that."""
    sizer = ScriptedSizer(pattern)
    workers = FakeWorkers([FakeTarget()], draft_type(0.8))
    decoder, session = make_decoder(workers, sizer=sizer, draft_calls=draft_calls)

    await decode(decoder)

    assert session.output == EXPECTED
    for number, round_ in enumerate(sizer.rounds):
        assert round_.speculated == pattern[number % len(pattern)]
        assert round_.speculated or not any(
            phase.name.startswith("draft.") for phase in round_.phases
        )


@DRAFTS
async def test_a_session_that_begins_while_drafts_rest_asks_for_none(
    draft_type: type[FakeDraft],
) -> None:
    """Neither opens it nor sends it features; once it is asked, it gets everything."""
    never, late = ScriptedSizer([False]), ScriptedSizer([False] * 6 + [True] * 20)
    resting, used = draft_type(1.0), draft_type(1.0)

    await decode(make_decoder(FakeWorkers([FakeTarget()], resting), sizer=never)[0])
    decoder, session = make_decoder(FakeWorkers([FakeTarget()], used), sizer=late)
    await decode(decoder)

    assert (resting.opened, used.opened) == (0, 1)
    assert session.output == EXPECTED
    assert any(one.accepted_count for one in late.rounds)


@DRAFTS
async def test_a_draft_that_was_perfect_before_its_rest_is_so_after_it(
    draft_type: type[FakeDraft],
) -> None:
    """What it missed reaches it whole."""
    sizer = ScriptedSizer([False] * 6 + [True] * 20)
    workers = FakeWorkers([FakeTarget()], draft_type(1.0))
    decoder, _ = make_decoder(workers, sizer=sizer)

    await decode(decoder)

    drafted = [one for one in sizer.rounds if one.speculated]
    assert drafted
    assert all(one.accepted_count == min(one.depth, one.num_draft_tokens) for one in drafted[:-1])


@pytest.mark.parametrize("moment", ["target.read_features", "draft.append", "draft.extend"])
async def test_a_draft_that_is_lost_on_its_way_back_costs_no_token(moment: str) -> None:
    """It is left for some rounds, as any draft that fails."""
    failed = False

    async def fault(at: str) -> None:
        nonlocal failed
        if at == moment and not failed:
            failed = True
            raise UnavailableError("gone")

    sizer = ScriptedSizer([False] * 7 + [True] * 20)
    workers = FakeWorkers([FakeTarget(fault)], FakeDraft(0.9, fault))
    decoder, session = make_decoder(workers, sizer=sizer)

    await decode(decoder)

    assert failed
    assert session.output == EXPECTED


async def test_a_target_that_is_lost_while_the_draft_rests_costs_no_token() -> None:
    """The next target has the features that the draft missed, too."""
    count = 0

    async def fault(at: str) -> None:
        nonlocal count
        count += at == "target.verify"
        if count == 5:
            count += 1
            raise UnavailableError("gone")

    sizer = ScriptedSizer([False] * 8 + [True] * 20)
    targets = [FakeTarget(fault), FakeTarget()]
    decoder, session = make_decoder(FakeWorkers(targets, FakeDraft(0.9)), sizer=sizer)

    await decode(decoder)

    assert session.output == EXPECTED
    assert targets[1].opened == 1
    assert any(one.speculated for one in sizer.rounds)
