"""ExpandTree against the same tree asked for level by level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from arborist.core.engine import (
    DraftEngine,
    DraftOpen,
    DraftOutcome,
    DraftWork,
    Expand,
    ExpandTree,
    Extend,
    SessionKey,
)
from arborist.core.errors import (
    ArboristError,
    InvalidArgumentError,
    SessionFailedError,
    UnknownSessionError,
)
from arborist.core.noise_aim import NoiseAim
from arborist.core.pool import Pool
from arborist.core.pool_policies import pool_policy
from arborist.core.tree import DraftTree, Level
from arborist.draft.engine import EagleDraftEngine, load_draft
from arborist.draft.run_ahead import RunAheadDraft

PAIR3 = Path(__file__).resolve().parents[2] / "golden" / "eagle3"
A: SessionKey = ("c", "a")
B: SessionKey = ("c", "b")
C: SessionKey = ("c", "c")


def extend(
    engine: DraftEngine, session: SessionKey, begin: int = 0, count: int = 3, top_k: int = 4
) -> Extend:
    """An Extend of random pairs."""
    generator = torch.Generator().manual_seed(begin + 10 * count)
    ids = torch.randint(0, 50, (count,), generator=generator).tolist()
    features = torch.randn(count, engine.feature_width, generator=generator)
    return Extend(session, begin, ids, features, top_k)


def run_one(engine: DraftEngine, work: DraftWork) -> DraftOutcome:
    """Runs a batch of one."""
    (outcome,) = engine.run([work])
    return outcome


def by_level(engine: DraftEngine, work: ExpandTree, level: DraftOutcome) -> list[Level]:
    """The levels that a controller gets which asks for each of them."""
    assert isinstance(level, Level)
    policy, tree = pool_policy(work.policy, work.depth, work.top_k), DraftTree(level)
    levels = []
    while (frontier := policy.frontier(tree)) is not None:
        found = run_one(engine, Expand(work.session, frontier.tolist(), work.top_k))
        assert isinstance(found, Level)
        levels.append(found)
        tree.grow(frontier, found)
    return levels


def assert_pool(pool: DraftOutcome, levels: Sequence[Level]) -> None:
    """Compares a pool with levels."""
    assert isinstance(pool, Pool), pool
    assert all(one > 0 for one in pool.compute_ms)
    for ours, theirs in zip(pool.levels, levels, strict=True):
        np.testing.assert_array_equal(ours.level.tokens, theirs.tokens)
        np.testing.assert_allclose(ours.level.logprobs, theirs.logprobs, atol=2e-5, rtol=0)


@pytest.fixture
def eagle3_engine() -> EagleDraftEngine:
    """A small EAGLE-3 head."""
    return load_draft(
        PAIR3 / "eagle_head",
        PAIR3 / "target",
        device="cpu",
        dtype="float32",
        kv_capacity_tokens=2000,
    )


def check_equality(engine: EagleDraftEngine, aim: NoiseAim | None = None) -> None:
    """Several rounds, every policy, in one session and in its level-by-level twin."""
    for session in (A, B):
        engine.open(session, DraftOpen(max_length=60, aim=aim))
    begin = 0
    for name, depth, top_k in [
        ("eagle2", 6, 4),
        ("eagle2_no_value", 3, 5),
        ("chain", 5, 1),
        ("eagle2", 2, 7),
    ]:
        first = [run_one(engine, extend(engine, one, begin, 3, top_k)) for one in (A, B)]
        pool = run_one(engine, ExpandTree(A, name, depth, top_k))
        levels = by_level(engine, ExpandTree(B, name, depth, top_k), first[1])
        assert_pool(pool, levels)
        begin += 3
        engine.check_integrity()


def test_a_pool_is_what_levels_give(engine: EagleDraftEngine) -> None:
    """An EAGLE-2 head grows by itself what the controller would have asked for."""
    check_equality(engine)


def test_a_pool_aimed_at_the_noise_is_what_levels_give(engine: EagleDraftEngine) -> None:
    """Every level has the noise of its own position, whoever asks for it."""
    check_equality(engine, NoiseAim(9, 1.0))


def test_a_pool_of_an_eagle3_head_is_what_levels_give(eagle3_engine: EagleDraftEngine) -> None:
    """Draft vocabulary and layer features make no difference."""
    check_equality(eagle3_engine)


def test_trees_of_different_depth_share_their_forwards(
    engine: EagleDraftEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shallow tree drops out, an Extend goes with the first forward, results are their own."""
    deep, flat = ExpandTree(A, "eagle2", 5, 4), ExpandTree(B, "eagle2", 3, 4)
    alone = []
    for work in (deep, flat):
        engine.open(work.session, DraftOpen(max_length=40))
        alone.append(by_level(engine, work, run_one(engine, extend(engine, work.session))))
        engine.open(work.session, DraftOpen(max_length=40))
        run_one(engine, extend(engine, work.session))
    engine.open(C, DraftOpen(max_length=40))
    sizes: list[int] = []
    forward = engine._run_forward

    def counted(batch: Sequence[Extend | Expand]) -> list[DraftOutcome]:
        sizes.append(len(batch))
        return forward(batch)

    monkeypatch.setattr(engine, "_run_forward", counted)
    pools = engine.run([deep, extend(engine, C), flat])
    assert sizes == [3, 2, 1, 1]
    assert_pool(pools[0], alone[0])
    assert isinstance(pools[1], Level)
    assert_pool(pools[2], alone[1])
    engine.check_integrity()


@pytest.mark.parametrize(
    ("work", "match"),
    [
        (ExpandTree(A, "medusa", 4, 4), r"policy = medusa"),
        (ExpandTree(A, "dynamic_depth", 4, 4), r"policy = dynamic_depth"),
        (ExpandTree(A, "eagle2", 17, 4), r"depth = 17"),
        (ExpandTree(A, "eagle2", 1, 4), r"depth = 1"),
        (ExpandTree(A, "eagle2", 4, 0), r"top_k = 0"),
        (ExpandTree(A, "eagle2", 4, 3), r"top_k = 3: must be level 1's, 4"),
    ],
    ids=str,
)
def test_a_wrong_tree_is_refused_and_changes_nothing(
    work: ExpandTree, match: str, engine: EagleDraftEngine
) -> None:
    """The error names field, value and limit; others of the batch and the session go on."""
    for session in (A, B):
        engine.open(session, DraftOpen(max_length=40))
        run_one(engine, extend(engine, session))
    bad, good = engine.run([work, ExpandTree(B, "eagle2", 3, 4)])
    assert isinstance(bad, InvalidArgumentError)
    assert isinstance(good, Pool)
    with pytest.raises(InvalidArgumentError, match=match):
        raise bad
    assert isinstance(run_one(engine, ExpandTree(A, "eagle2", 3, 4)), Pool)


def test_a_tree_needs_level_1_of_the_same_round(engine: EagleDraftEngine) -> None:
    """Neither without a level, nor after another one, nor after an Extend that failed."""
    tree = ExpandTree(A, "eagle2", 3, 4)
    assert isinstance(run_one(engine, tree), UnknownSessionError)
    engine.open(A, DraftOpen(max_length=40))
    assert isinstance(run_one(engine, tree), InvalidArgumentError)
    run_one(engine, extend(engine, A, top_k=0))
    assert isinstance(run_one(engine, tree), InvalidArgumentError)
    run_one(engine, extend(engine, A, begin=3))
    refused = run_one(engine, extend(engine, A, begin=9))
    assert isinstance(refused, InvalidArgumentError)
    assert isinstance(run_one(engine, tree), InvalidArgumentError)
    run_one(engine, extend(engine, A, begin=6))
    assert isinstance(run_one(engine, tree), Pool)
    assert isinstance(run_one(engine, tree), InvalidArgumentError)


def test_a_session_that_breaks_on_the_way_breaks_alone(
    engine: EagleDraftEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error at level 3 is that tree's; it starts from level 1 again, the other is whole."""
    for session in (A, B):
        engine.open(session, DraftOpen(max_length=40))
        run_one(engine, extend(engine, session))
    trees = [ExpandTree(session, "eagle2", 4, 4) for session in (A, B)]
    calls = 0
    forward = engine._run_forward

    def failing(batch: Sequence[Extend | Expand]) -> list[DraftOutcome]:
        nonlocal calls
        calls += 1
        outcomes = forward(batch)
        if calls == 2:
            outcomes[0] = SessionFailedError("not finite")
        return outcomes

    with monkeypatch.context() as patched:
        patched.setattr(engine, "_run_forward", failing)
        bad, good = engine.run(trees)
    assert isinstance(bad, SessionFailedError)
    assert isinstance(good, Pool)
    again = run_one(engine, trees[0])
    assert isinstance(again, Pool)
    assert_pool(again, [one.level for one in good.levels])


def test_a_forward_that_raises_leaves_every_session_to_run_again(
    engine: EagleDraftEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker runs the items one by one afterwards: an Extend must not count twice."""
    for session in (A, B):
        engine.open(session, DraftOpen(max_length=40))
    run_one(engine, extend(engine, A))
    batch: list[DraftWork] = [ExpandTree(A, "eagle2", 4, 4), extend(engine, B)]
    calls = 0
    forward = engine._run_forward

    def raising(items: Sequence[Extend | Expand]) -> list[DraftOutcome]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("no memory")
        return forward(items)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "_run_forward", raising)
        with pytest.raises(RuntimeError):
            engine.run(batch)
    pool, level = (run_one(engine, work) for work in batch)
    assert isinstance(pool, Pool)
    assert isinstance(level, Level)
    engine.check_integrity()


def test_a_draft_that_runs_ahead_passes_trees_through(engine: EagleDraftEngine) -> None:
    """A level guessed before is dropped, the pool is the engine's, and nothing is guessed after."""
    ahead = RunAheadDraft(engine)
    for session in (A, B):
        ahead.open(session, DraftOpen(max_length=40))
        by_level(ahead, ExpandTree(session, "eagle2", 3, 4), run_one(ahead, extend(ahead, session)))
    work = ExpandTree(A, "eagle2", 4, 4)
    run_one(ahead, extend(ahead, A, begin=3))
    assert ahead.run_ahead() == [A]
    pool = run_one(ahead, work)
    assert ahead.run_ahead() == []
    levels = by_level(
        ahead, ExpandTree(B, "eagle2", 4, 4), run_one(ahead, extend(ahead, B, begin=3))
    )
    assert_pool(pool, levels)
    assert not isinstance(run_one(ahead, extend(ahead, A, begin=6)), ArboristError)
    assert ahead.run_ahead() == []
