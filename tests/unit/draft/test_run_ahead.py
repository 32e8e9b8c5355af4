"""A draft that runs ahead answers exactly as one that does not, whatever it guessed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from arborist.core.engine import DraftOpen, DraftOutcome, DraftWork, Expand, Extend, SessionKey
from arborist.core.tree import Level, best_first
from arborist.draft.engine import EagleDraftEngine
from arborist.draft.run_ahead import RunAheadDraft

TOP_K = 3


def _features(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn((rows, width), generator=torch.Generator().manual_seed(seed))


class Controller:
    """Drafts rounds on one session as the decode loop does, and may stray from EAGLE-2's rows."""

    def __init__(self, engine: EagleDraftEngine | RunAheadDraft, session: SessionKey) -> None:
        self._engine = engine
        self._session = session
        self._pairs = 0
        engine.open(session, DraftOpen(max_length=40))

    def round(self, depth: int, widths: Sequence[int], strays: bool, ahead: bool) -> list[Level]:
        tokens = [self._pairs % 5 + 1, 2]
        extend = Extend(
            self._session,
            self._pairs,
            tokens,
            _features(2, self._engine.feature_width, self._pairs),
            TOP_K,
        )
        self._pairs += 2
        levels = [self._level(extend, ahead)]
        scores = levels[0].logprobs[0]
        for width in widths[: depth - 1]:
            rows = best_first(scores)[:width]
            if strays:
                rows = rows[::-1]
            level = self._level(Expand(self._session, [int(row) for row in rows], TOP_K), ahead)
            scores = (scores[rows][:, None] + level.logprobs).reshape(-1)
            levels.append(level)
        return levels

    def _level(self, work: DraftWork, ahead: bool) -> Level:
        (outcome,) = self._engine.run([work])
        assert isinstance(outcome, Level)
        if ahead and isinstance(self._engine, RunAheadDraft):
            self._engine.run_ahead()
        return outcome


@pytest.mark.parametrize("seed", range(6))
def test_answers_are_those_of_the_engine_alone(engine: EagleDraftEngine, seed: int) -> None:
    """Rounds of changing depth and width, right and wrong guesses, idle or not: same levels."""
    choice = random.Random(seed)
    ahead = RunAheadDraft(engine)
    alone, other = Controller(engine, ("c", "alone")), Controller(ahead, ("c", "ahead"))
    for _ in range(6):
        depth, strays = choice.randint(1, 4), choice.random() < 0.3
        widths = [choice.randint(1, 3) for _ in range(3)]
        expected = alone.round(depth, widths, strays, ahead=False)
        found = other.round(depth, widths, strays, ahead=choice.random() < 0.8)
        for one, two in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one.tokens, two.tokens)
            np.testing.assert_allclose(one.logprobs, two.logprobs, rtol=0, atol=1e-5)
    ahead.check_integrity()


def test_rounds_alike_are_guessed_right(engine: EagleDraftEngine) -> None:
    """From the second round on every Expand was computed before it came, and nothing else."""
    ahead = RunAheadDraft(engine)
    controller = Controller(ahead, ("c", "s"))
    for _ in range(4):
        controller.round(3, [3, 3], strays=False, ahead=True)

    assert ahead.num_guessed == ahead.num_right == 3 * 2


def test_sessions_are_guessed_together(engine: EagleDraftEngine) -> None:
    """One idle moment serves every session that waits for its next level."""
    ahead = RunAheadDraft(engine)
    controllers = [Controller(ahead, ("c", name)) for name in "ab"]
    for controller in controllers:
        controller.round(2, [2], strays=False, ahead=False)
    works: list[DraftWork] = [
        Extend(("c", name), 2, [1], _features(1, ahead.feature_width, 9), TOP_K) for name in "ab"
    ]
    ahead.run(works)

    assert ahead.run_ahead() == [("c", "a"), ("c", "b")]
    assert ahead.run_ahead() == []


def test_a_failure_ahead_is_nobodys_failure(
    engine: EagleDraftEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails ahead of time is computed again when it is asked for."""
    ahead = RunAheadDraft(engine)
    controller = Controller(ahead, ("c", "s"))
    controller.round(2, [2], strays=False, ahead=False)
    extend = Extend(("c", "s"), 2, [1], _features(1, ahead.feature_width, 9), TOP_K)
    (level,) = ahead.run([extend])
    assert isinstance(level, Level)
    run = engine.run

    def fail(batch: Sequence[DraftWork]) -> list[DraftOutcome]:
        raise RuntimeError("no memory")

    monkeypatch.setattr(engine, "run", fail)
    assert ahead.run_ahead() == []
    monkeypatch.setattr(engine, "run", run)

    rows = [int(row) for row in best_first(level.logprobs[0])[:2]]
    (outcome,) = ahead.run([Expand(("c", "s"), rows, TOP_K)])
    assert isinstance(outcome, Level)


def test_a_released_session_is_not_guessed(engine: EagleDraftEngine) -> None:
    """Nothing is computed for a session that is gone."""
    ahead = RunAheadDraft(engine)
    controller = Controller(ahead, ("c", "s"))
    controller.round(2, [2], strays=False, ahead=False)
    ahead.run([Extend(("c", "s"), 2, [1], _features(1, ahead.feature_width, 9), TOP_K)])
    ahead.release(("c", "s"))

    assert ahead.run_ahead() == []
