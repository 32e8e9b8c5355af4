"""Whether sessions draft at a level of load, and trials of the other way."""

from __future__ import annotations

import pytest

from arborist.orchestrator.drafting_choice import DraftingChoice
from arborist.orchestrator.load_level import LoadLevel


def at(value: int) -> LoadLevel:
    """Returns a level of load."""
    level = LoadLevel()
    level.follow(1 << value)
    return level


def pass_rounds(choice: DraftingChoice, count: int, ms: float = 20.0) -> int:
    """Lets rounds of single sessions pass, as the choice wants them; returns those that count."""
    return sum(choice.observe(ms, ms, drafted=choice.drafts) for _ in range(count))


def ask(choice: DraftingChoice, gain: float, *, known: bool = True) -> None:
    """Has it consider the other way."""
    choice.consider(gain, 20.0, present_is_known=True, other_is_known=known)


def resting_at(level: int) -> DraftingChoice:
    """Returns one that drafts alone, at a level where plain decoding has won."""
    choice = DraftingChoice()
    pass_rounds(choice, 50)
    choice.move_to(at(level))
    ask(choice, 2.0, known=False)
    pass_rounds(choice, 100 * 2**level)
    ask(choice, 0.5)
    pass_rounds(choice, 100 * 2**level)
    assert not choice.drafts
    return choice


def test_what_is_clearly_better_is_taken_up_at_once_and_kept_once_seen() -> None:
    """The rounds in which sessions settle tell nothing."""
    choice = DraftingChoice()
    ask(choice, 1.5, known=False)
    assert not choice.drafts

    counted = pass_rounds(choice, 40)
    ask(choice, 0.6)

    assert 20 < counted < 40
    assert not choice.drafts
    assert choice.rests


@pytest.mark.parametrize("gain", [0.97, 1.3])
def test_a_trial_that_shows_no_clear_gain_is_undone(gain: float) -> None:
    """As good is not good enough: going over costs something."""
    choice = DraftingChoice()
    ask(choice, 1.5, known=False)
    pass_rounds(choice, 40)
    ask(choice, gain)

    assert choice.drafts
    assert not choice.rests


def test_in_the_middle_of_a_trial_nothing_is_decided() -> None:
    """Whatever its first rounds look like."""
    choice = DraftingChoice()
    ask(choice, 1.5, known=False)
    pass_rounds(choice, 10)
    ask(choice, 9.0)

    assert not choice.drafts
    assert not choice.is_settled


def test_every_level_of_load_has_its_choice() -> None:
    """A server that was full drafts again once it is idle, and rests at once when it is full."""
    choice = resting_at(4)

    choice.move_to(at(0))
    assert not choice.rests  # Who begins now asks for a draft,
    assert not choice.drafts  # but the others have much to catch up with.
    pass_rounds(choice, 30)
    ask(choice, 0.5)
    assert choice.drafts

    choice.move_to(at(4))
    assert choice.rests
    assert not choice.drafts


def test_a_lull_is_no_reason_to_ask_the_drafts_again() -> None:
    """Sessions at rest have much to catch up with."""
    choice = resting_at(4)

    choice.move_to(at(3))
    pass_rounds(choice, 40)
    ask(choice, 3.0, known=False)
    assert not choice.drafts

    pass_rounds(choice, 200)
    ask(choice, 3.0, known=False)
    assert choice.drafts


def test_who_begins_alone_where_sessions_draft_does_so_at_once() -> None:
    """Nobody has anything to catch up with; where they rest, it rests."""
    choice = resting_at(4)
    choice.begin_alone()
    assert not choice.drafts

    choice.move_to(at(0))
    choice.begin_alone()
    assert choice.drafts
    assert choice.is_settled

    choice.move_to(at(4))
    assert not choice.drafts


def test_who_begins_alone_does_not_end_a_trial_of_plain_decoding() -> None:
    """One trial may be had in several short sessions."""
    choice = DraftingChoice()
    pass_rounds(choice, 20_000)
    ask(choice, 0.6, known=False)
    assert not choice.drafts

    choice.begin_alone()
    assert not choice.drafts


def test_a_trial_that_the_load_ends_has_told_nothing() -> None:
    """All goes on as before it."""
    choice = resting_at(4)
    choice.observe(1e6, 1e6, drafted=False)  # Much is saved up.
    ask(choice, 0.9)
    assert choice.drafts

    choice.move_to(at(6))

    assert not choice.drafts


def test_trials_cost_no_more_than_a_small_share_of_the_time() -> None:
    """Also when tables promise, again and again, what is not true."""
    choice = resting_at(4)
    tried_ms = passed_ms = 0.0
    for _ in range(100_000):
        ask(choice, 1.6 if choice.drafts else 0.95)
        # Of four witnesses' rounds a quarter passes; while all is calm there is but one of them.
        ms = 20.0 if choice.is_calm else 5.0
        passed_ms += ms
        tried_ms += ms * choice.drafts
        choice.observe(20.0, 20.0, drafted=choice.drafts)

    assert 0.002 < tried_ms / passed_ms < 0.01


def test_plain_decoding_is_tried_once_even_if_tables_speak_against_it() -> None:
    """But not where they call it hopeless, nor once it was seen to be much worse."""
    for gain, known, tried in ((0.6, False, True), (0.3, False, False), (0.6, True, False)):
        choice = DraftingChoice()
        pass_rounds(choice, 20_000)
        ask(choice, gain, known=known)
        assert choice.drafts != tried


def test_drafts_that_fail_end_a_trial() -> None:
    """Rounds without a draft are none of it."""
    choice = resting_at(0)
    choice.observe(1e6, 1e6, drafted=False)
    ask(choice, 0.9)
    assert choice.drafts
    for _ in range(200):
        assert not choice.observe(20.0, 20.0, drafted=False)
    ask(choice, 0.2)

    assert not choice.drafts


def test_however_dear_a_trial_was_there_is_another() -> None:
    """A draft that once took ages to catch up is not given up for good."""
    choice = resting_at(0)
    pass_rounds(choice, 200_000)
    ask(choice, 3.0)
    assert choice.drafts
    choice.observe(60_000.0, 20.0, drafted=True)
    pass_rounds(choice, 100)
    ask(choice, 2.0)
    assert not choice.drafts

    pass_rounds(choice, 1_000_000)
    ask(choice, 3.0)
    assert choice.drafts


def test_a_load_that_comes_and_goes_makes_no_free_trials() -> None:
    """Each would end before it told anything."""
    choice = DraftingChoice()
    pass_rounds(choice, 100)
    turns, before = 0, choice.drafts
    for number in range(400):
        choice.move_to(at(number % 2))
        for _ in range(10):
            ask(choice, 1.6 if choice.drafts else 0.6, known=False)
            pass_rounds(choice, 1)
            turns, before = turns + (choice.drafts != before), choice.drafts

    assert turns < 20


def test_rounds_that_were_under_way_do_not_hide_what_a_change_cost() -> None:
    """They end while the sessions settle after the next one."""
    choice = resting_at(2)
    pass_rounds(choice, 50_000)
    ask(choice, 0.95)
    assert choice.drafts
    for _ in range(4):
        choice.observe(2000.0, 20.0, drafted=True)  # Drafts catch up.
    pass_rounds(choice, 400)
    ask(choice, 1.5)
    assert not choice.drafts
    for _ in range(3):
        choice.observe(20.0, 20.0, drafted=True)

    pass_rounds(choice, 2500)  # A quarter of a second is saved up, where two are owed.
    ask(choice, 0.95)
    assert not choice.drafts


def test_it_is_calm_between_trials_alone() -> None:
    """Then fewer rounds are told of, each of which passes by itself."""
    choice = resting_at(2)
    assert choice.is_calm

    pass_rounds(choice, 50_000)
    ask(choice, 0.9)
    assert choice.drafts
    for _ in range(4 * 4 + 24):  # Four sessions settle, and are tried.
        assert not choice.is_calm
        pass_rounds(choice, 1)
    ask(choice, 1.5)
    assert not choice.drafts
    assert not choice.is_calm

    pass_rounds(choice, 4 * 8)
    assert choice.is_calm
    choice.move_to(at(4))
    assert not choice.is_calm
