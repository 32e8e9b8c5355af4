"""The engine against naive recomputation of every path, single and batched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.draft.conftest import (
    HIDDEN,
    VOCAB,
    random_head,
    random_table,
    tiny_config,
    write_target,
)
from tests.unit.draft.naive import NaiveDraft, NaiveHead
from torch import Tensor

from arborist.core.engine import (
    DraftOpen,
    DraftOutcome,
    DraftWork,
    Expand,
    Extend,
    Extended,
    SessionKey,
)
from arborist.core.errors import (
    ArboristError,
    InvalidArgumentError,
    ResourceExhaustedError,
    SessionFailedError,
    UnknownSessionError,
)
from arborist.core.noise_aim import NoiseAim
from arborist.core.sampling import gumbel_noise
from arborist.core.shape import MAX_DEPTH, MAX_TOP_K
from arborist.core.tree import Level
from arborist.draft.checkpoint import load_head, save_head
from arborist.draft.engine import EagleDraftEngine, load_draft
from arborist.draft.target_vocabulary import load_target_vocabulary
from arborist.draft.tree_engine import SCRATCH_TOKENS

A: SessionKey = ("controller", "a")
B: SessionKey = ("controller", "b")


def features(count: int, seed: int) -> Tensor:
    """Random feature rows."""
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


def tokens(count: int, seed: int) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (count,), generator=generator).tolist()


def extend(session: SessionKey, begin: int, count: int, seed: int = 0, top_k: int = 3) -> Extend:
    """An Extend of random pairs."""
    return Extend(session, begin, tokens(count, seed), features(count, seed), top_k)


def run_one(engine: EagleDraftEngine, work: DraftWork) -> DraftOutcome:
    """Runs a batch of one."""
    (outcome,) = engine.run([work])
    return outcome


def level_of(outcome: DraftOutcome) -> Level:
    """The level, or a failed test."""
    assert isinstance(outcome, Level), outcome
    return outcome


def assert_same(ours: Level, theirs: Level, tolerance: float = 2e-5) -> None:
    """Compares two levels."""
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=tolerance, rtol=0)


def naive_draft(head_path: Path, target_path: Path) -> NaiveDraft:
    """The reference for one session."""
    head, embedding = load_head(head_path)
    target = load_target_vocabulary(target_path)
    table = target.embed_tokens if embedding is None else embedding
    return NaiveDraft(
        NaiveHead(head.config, head.state_dict()),
        table.double().numpy(),
        target.lm_head.double().numpy(),
    )


@dataclass(frozen=True)
class Step:
    """One command of a script: an Extend of `pairs`, or an Expand when pairs is 0."""

    pairs: int
    top_k: int
    rows: tuple[int, ...] = ()


def random_script(seed: int) -> list[Step]:
    """Three rounds of ragged trees, the first after a prompt in two chunks."""
    rng = np.random.default_rng(seed)
    script = [Step(int(rng.integers(1, 5)), 0)]
    for _ in range(3):
        top_k = int(rng.integers(1, 5))
        script.append(Step(int(rng.integers(1, 4)), top_k))
        candidates = top_k
        for _ in range(int(rng.integers(0, 4))):
            width = int(rng.integers(1, min(candidates, 4) + 1))
            rows = rng.permutation(candidates)[:width]
            top_k = int(rng.integers(1, 5))
            script.append(Step(0, top_k, tuple(int(row) for row in rows)))
            candidates = width * top_k
    return script


def works(session: SessionKey, script: list[Step], seed: int) -> list[DraftWork]:
    """Turns a script into commands."""
    made: list[DraftWork] = []
    begin = 0
    for index, step in enumerate(script):
        if step.pairs:
            made.append(extend(session, begin, step.pairs, 100 * seed + index, step.top_k))
            begin += step.pairs
        else:
            made.append(Expand(session, list(step.rows), step.top_k))
    return made


@pytest.mark.parametrize("seed", range(6))
def test_trees_equal_naive_recomputation(
    seed: int, engine: EagleDraftEngine, head_path: Path, target_path: Path
) -> None:
    """Every level of several rounds is what recomputing each node's path from scratch gives."""
    naive = naive_draft(head_path, target_path)
    engine.open(A, DraftOpen(max_length=40))
    for work in works(A, random_script(seed), seed):
        outcome = run_one(engine, work)
        if isinstance(work, Extend):
            assert work.features is not None
            naive.extend(work.tokens, work.features)
            if not work.top_k:
                assert outcome == Extended(len(naive.tokens))
                continue
            expected = naive.level(None, work.top_k)
        else:
            assert isinstance(work, Expand)
            expected = naive.level(work.rows, work.top_k)
        np.testing.assert_array_equal(level_of(outcome).tokens, expected[0])
        np.testing.assert_allclose(level_of(outcome).logprobs, expected[1], atol=2e-5, rtol=0)
        engine.check_integrity()


@pytest.mark.parametrize("seed", range(3))
def test_aimed_trees_equal_naive_recomputation(
    seed: int, engine: EagleDraftEngine, head_path: Path, target_path: Path
) -> None:
    """Told of the target's noise, every level is ranked with that of its own position."""
    aim = NoiseAim(2**63 + seed, 0.9)
    naive = naive_draft(head_path, target_path)
    naive.added = lambda position: (
        0.9 * gumbel_noise(aim.seed, position, VOCAB, torch.device("cpu")).numpy()
    )
    engine.open(A, DraftOpen(max_length=40, aim=aim))
    for work in works(A, random_script(seed), seed):
        outcome = run_one(engine, work)
        if isinstance(work, Extend):
            assert work.features is not None
            naive.extend(work.tokens, work.features)
            if not work.top_k:
                continue
        assert isinstance(work, Extend | Expand)
        expected = naive.level(work.rows if isinstance(work, Expand) else None, work.top_k)
        np.testing.assert_array_equal(level_of(outcome).tokens, expected[0])
        np.testing.assert_allclose(level_of(outcome).logprobs, expected[1], atol=5e-5, rtol=0)


@pytest.mark.parametrize("changes", [{"num_layers": 2}, {"qkv_bias": True, "bias": False}])
def test_other_shapes_of_head_equal_naive_recomputation(
    changes: dict, tmp_path: Path, target_path: Path
) -> None:
    """Two layers, and biases elsewhere, go through the same KV; the target's embedding is used."""
    save_head(tmp_path / "head", random_head(tiny_config(**changes)), dtype=torch.float32)
    engine = load_draft(
        tmp_path / "head", target_path, device="cpu", dtype="float32", kv_capacity_tokens=600
    )
    naive = naive_draft(tmp_path / "head", target_path)
    engine.open(A, DraftOpen(max_length=40))
    first = extend(A, 0, 5)
    naive.extend(first.tokens, features(5, 0))
    outcome = level_of(run_one(engine, first))
    np.testing.assert_array_equal(outcome.tokens, naive.level(None, 3)[0])
    for rows in ([0, 2], [1, 4, 0]):
        outcome = level_of(run_one(engine, Expand(A, rows, 3)))
        expected = naive.level(rows, 3)
        np.testing.assert_array_equal(outcome.tokens, expected[0])
        np.testing.assert_allclose(outcome.logprobs, expected[1], atol=2e-5, rtol=0)


def test_a_batch_equals_its_items_alone(engine: EagleDraftEngine) -> None:
    """Sessions at different places of different scripts share forwards without a trace of it."""
    scripts = {("controller", str(seed)): random_script(seed) for seed in range(4)}
    queues = {key: works(key, script, int(key[1])) for key, script in scripts.items()}
    alone: dict[SessionKey, list[DraftOutcome]] = {}
    # Two of them are told of their target's noise.
    aims = dict(zip(queues, (None, NoiseAim(3, 0.7), None, NoiseAim(4, 1.2)), strict=True))
    for key, queue in queues.items():
        engine.open(key, DraftOpen(max_length=40, aim=aims[key]))
        alone[key] = [run_one(engine, work) for work in queue]
        engine.release(key)
    together: dict[SessionKey, list[DraftOutcome]] = {key: [] for key in queues}
    for key in queues:
        engine.open(key, DraftOpen(max_length=40, aim=aims[key]))
    rng = np.random.default_rng(5)
    while open_keys := [key for key in queues if len(together[key]) < len(queues[key])]:
        chosen = [key for key in open_keys if rng.random() < 0.7]
        batch = [queues[key][len(together[key])] for key in chosen]
        for key, outcome in zip(chosen, engine.run(batch), strict=True):
            together[key].append(outcome)
    for key in queues:
        for one, other in zip(together[key], alone[key], strict=True):
            if isinstance(other, Level):
                assert_same(level_of(one), other)
            else:
                assert one == other


def test_tree_nodes_leave_nothing_behind(engine: EagleDraftEngine) -> None:
    """A session that drew trees gives the same levels as one that only held the pairs."""
    for key in (A, B):
        engine.open(key, DraftOpen(max_length=40))
    level_of(run_one(engine, extend(A, 0, 4)))
    for rows in ([0, 1, 2], [3, 1, 8], [0]):
        level_of(run_one(engine, Expand(A, rows, 3)))
    after_tree = level_of(run_one(engine, extend(A, 4, 3, seed=1)))
    run_one(engine, extend(B, 0, 4, top_k=0))
    assert_same(after_tree, level_of(run_one(engine, extend(B, 4, 3, seed=1))))


def test_chunks_equal_one_extend(engine: EagleDraftEngine) -> None:
    """A prompt in pieces is the prompt in one."""
    whole, ids = features(9, 7), tokens(9, 7)
    for key in (A, B):
        engine.open(key, DraftOpen(max_length=40))
    at_once = level_of(run_one(engine, Extend(A, 0, ids, whole, 4)))
    assert run_one(engine, Extend(B, 0, ids[:4], whole[:4], 0)) == Extended(4)
    assert run_one(engine, Extend(B, 4, ids[4:5], whole[4:5], 0)) == Extended(5)
    assert_same(level_of(run_one(engine, Extend(B, 5, ids[5:], whole[5:], 4))), at_once)


def test_levels_are_ordered_distinct_and_probabilities(engine: EagleDraftEngine) -> None:
    """Children come best first, once each, and the whole vocabulary sums to one."""
    engine.open(A, DraftOpen(max_length=40))
    level = level_of(run_one(engine, extend(A, 0, 3, top_k=MAX_TOP_K)))
    assert level.tokens.shape == (1, MAX_TOP_K)
    assert (np.diff(level.logprobs, axis=1) <= 0).all()
    assert len(set(level.tokens[0].tolist())) == MAX_TOP_K
    assert np.exp(level.logprobs).sum() <= 1 + 1e-5
    assert level.tokens.dtype == np.int64
    assert level.logprobs.dtype == np.float32


def test_ties_go_to_the_smaller_token(tmp_path: Path, head_path: Path, device: str) -> None:
    """Tokens with equal logits come in the order of their ids."""
    table = random_table(2)
    table[30:60] = table[:30]  # Every token below 30 has a double.
    write_target(tmp_path / "twins", random_table(1), table)
    engine = load_draft(
        head_path, tmp_path / "twins", device=device, dtype="float32", kv_capacity_tokens=600
    )
    engine.open(A, DraftOpen(max_length=40))
    level = level_of(run_one(engine, extend(A, 0, 3, top_k=8)))
    level = level_of(run_one(engine, Expand(A, list(range(8)), 8)))
    ties = level.logprobs[:, 1:] == level.logprobs[:, :-1]
    assert ties.any()
    assert (np.diff(level.tokens, axis=1)[ties] > 0).all()


def wrong_works() -> dict[str, tuple[DraftWork, str]]:
    """Commands that a session with 4 pairs and a level of 3 must refuse, and why."""
    short = features(2, 1)
    return {
        "gap": (extend(A, 5, 2), "begin = 5: must be the pairs held, 4"),
        "repetition": (extend(A, 0, 2), "begin = 0"),
        "no tokens": (Extend(A, 4, [], features(0, 1), 3), "tokens = 0"),
        "too long": (extend(A, 4, 37), "tokens = 37: must be at most 36 more"),
        "token too large": (Extend(A, 4, [1, VOCAB], short, 3), f"tokens = {VOCAB}"),
        "token negative": (Extend(A, 4, [-1, 1], short, 3), "tokens = -1"),
        "no features": (Extend(A, 4, [1, 2], None, 3), "features = none"),
        "too few features": (Extend(A, 4, [1, 2, 3], short, 3), r"features = \(2, 32\)"),
        "narrow features": (Extend(A, 4, [1, 2], short[:, :9], 3), r"features = \(2, 9\)"),
        "integer features": (Extend(A, 4, [1, 2], short.long(), 3), "features = torch.int64"),
        "wide level": (extend(A, 4, 2, top_k=MAX_TOP_K + 1), "top_k = 33"),
        "negative top_k": (extend(A, 4, 2, top_k=-1), "top_k = -1"),
        "no rows": (Expand(A, [], 3), "rows = 0"),
        "row too large": (Expand(A, [0, 3], 3), r"rows = 3: must be in \[0, 3\)"),
        "row negative": (Expand(A, [-1], 3), "rows = -1"),
        "row twice": (Expand(A, [1, 1], 3), "rows = repeated"),
        "no children": (Expand(A, [1], 0), "top_k = 0"),
    }


@pytest.mark.parametrize("case", wrong_works())
def test_a_wrong_item_is_refused_and_changes_nothing(case: str, engine: EagleDraftEngine) -> None:
    """The refusal names field, value and limit; the session and its neighbour go on."""
    for key in (A, B):
        engine.open(key, DraftOpen(max_length=40))
        level_of(run_one(engine, extend(key, 0, 4)))
    work, message = wrong_works()[case]
    refused, neighbour = engine.run([work, Expand(B, [2, 0], 3)])
    assert isinstance(refused, InvalidArgumentError)
    with pytest.raises(InvalidArgumentError, match=message):
        raise refused
    assert_same(level_of(run_one(engine, Expand(A, [2, 0], 3))), level_of(neighbour))
    engine.check_integrity()


@pytest.mark.parametrize(("dtype", "value"), [("float16", 1e5), ("bfloat16", 3.4e38)])
def test_features_that_overflow_the_drafts_dtype_are_refused(
    dtype: str, value: float, head_path: Path, target_path: Path, device: str
) -> None:
    """What is finite on the wire may not be in the draft's own dtype; the session goes on."""
    engine = load_draft(head_path, target_path, device=device, dtype=dtype, kv_capacity_tokens=600)
    engine.open(A, DraftOpen(max_length=40))
    level_of(run_one(engine, extend(A, 0, 4)))
    refused = run_one(engine, Extend(A, 4, [1, 2], torch.full((2, HIDDEN), value), 3))
    assert isinstance(refused, InvalidArgumentError)
    assert "features = NaN or infinite" in refused.message
    level_of(run_one(engine, extend(A, 4, 2)))


def test_too_many_rows_are_refused(engine: EagleDraftEngine) -> None:
    """At most 32 nodes are expanded at once."""
    engine.open(A, DraftOpen(max_length=40))
    level_of(run_one(engine, extend(A, 0, 4, top_k=8)))
    level_of(run_one(engine, Expand(A, list(range(8)), 8)))
    refused = run_one(engine, Expand(A, list(range(MAX_TOP_K + 1)), 2))
    assert isinstance(refused, InvalidArgumentError)
    assert "rows = 33" in refused.message


def test_the_largest_tree_fits_and_a_deeper_one_is_refused(engine: EagleDraftEngine) -> None:
    """16 levels of 32 nodes have their KV, at the very end of a session too."""
    engine.open(A, DraftOpen(max_length=4))
    level_of(run_one(engine, extend(A, 0, 4, top_k=MAX_TOP_K)))
    for _ in range(MAX_DEPTH - 1):
        level_of(run_one(engine, Expand(A, list(range(MAX_TOP_K)), MAX_TOP_K)))
    engine.check_integrity()
    refused = run_one(engine, Expand(A, [0], 1))
    assert isinstance(refused, InvalidArgumentError)
    assert "levels = 17" in refused.message


def test_a_session_that_breaks_in_the_forward_breaks_alone(engine: EagleDraftEngine) -> None:
    """Finite features whose output overflows fail their own session, which keeps its pairs."""
    for key in (A, B):
        engine.open(key, DraftOpen(max_length=40))
        level_of(run_one(engine, extend(key, 0, 4)))
    huge = torch.full((2, HIDDEN), 3e38)
    broken, fine = engine.run([Extend(A, 4, [1, 2], huge, 3), extend(B, 4, 2, seed=9)])
    assert isinstance(broken, SessionFailedError)
    refused = run_one(engine, Expand(A, [0], 3))
    assert isinstance(refused, InvalidArgumentError)
    assert_same(level_of(run_one(engine, extend(A, 4, 2, seed=9))), level_of(fine))


def test_expanding_without_a_level_is_refused(engine: EagleDraftEngine) -> None:
    """Before any level, and after an Extend that asked for none, there is nothing to expand."""
    engine.open(A, DraftOpen(max_length=40))
    assert isinstance(run_one(engine, Expand(A, [0], 2)), InvalidArgumentError)
    level_of(run_one(engine, extend(A, 0, 2)))
    assert run_one(engine, extend(A, 2, 2, top_k=0)) == Extended(4)
    assert isinstance(run_one(engine, Expand(A, [0], 2)), InvalidArgumentError)


def test_unknown_and_released_sessions_are_not_found(engine: EagleDraftEngine) -> None:
    """Release forgets everything; releasing again is no error."""
    assert isinstance(run_one(engine, extend(A, 0, 2)), UnknownSessionError)
    engine.open(A, DraftOpen(max_length=40))
    engine.release(A)
    engine.release(A)
    assert isinstance(run_one(engine, extend(A, 0, 2)), UnknownSessionError)
    assert engine.kv_reserved_tokens == 0


def test_a_session_may_appear_once_in_a_batch(engine: EagleDraftEngine) -> None:
    """The second item of a session is refused, the first runs."""
    engine.open(A, DraftOpen(max_length=40))
    first, second = engine.run([extend(A, 0, 2), extend(A, 2, 2)])
    level_of(first)
    assert isinstance(second, InvalidArgumentError)


def test_an_empty_batch_is_no_work(engine: EagleDraftEngine) -> None:
    """Nothing in, nothing out."""
    assert engine.run([]) == []


def test_admission_counts_tokens(engine: EagleDraftEngine) -> None:
    """Sessions are admitted while their tokens fit, and room comes back with a release."""
    each = engine.open(A, DraftOpen(max_length=1400))
    assert each == 1400 + SCRATCH_TOKENS
    assert engine.open(B, DraftOpen(max_length=1400)) == each
    third = ("controller", "c")
    with pytest.raises(ResourceExhaustedError) as caught:
        engine.open(third, DraftOpen(max_length=1400))
    assert caught.value.retry_after_ms > 0
    assert engine.kv_reserved_tokens == 2 * each
    assert isinstance(run_one(engine, extend(third, 0, 2)), UnknownSessionError)
    engine.release(A)
    assert engine.open(third, DraftOpen(max_length=1400)) == each
    assert engine.num_sessions == 2
    engine.check_integrity()


@pytest.mark.parametrize("max_length", [0, -3, 4000])
def test_an_impossible_length_is_refused(max_length: int, engine: EagleDraftEngine) -> None:
    """What could never fit is an invalid argument, not a reason to wait."""
    with pytest.raises(InvalidArgumentError):
        engine.open(A, DraftOpen(max_length=max_length))
    assert engine.kv_reserved_tokens == 0


def test_opening_again_drops_the_old_state(engine: EagleDraftEngine) -> None:
    """The session starts empty and holds one reservation."""
    engine.open(A, DraftOpen(max_length=40))
    fresh = level_of(run_one(engine, extend(A, 0, 4)))
    reserved = engine.open(A, DraftOpen(max_length=60))
    assert engine.kv_reserved_tokens == reserved
    assert isinstance(run_one(engine, Expand(A, [0], 2)), ArboristError)
    assert_same(level_of(run_one(engine, extend(A, 0, 4))), fresh)


def test_sessions_are_scoped_to_their_controller(engine: EagleDraftEngine) -> None:
    """The same session id of two controllers is two sessions."""
    for key in (("one", "s"), ("two", "s")):
        engine.open(key, DraftOpen(max_length=40))
    assert run_one(engine, extend(("one", "s"), 0, 3, top_k=0)) == Extended(3)
    assert run_one(engine, extend(("two", "s"), 0, 2, top_k=0)) == Extended(2)


def test_warming_up_leaves_nothing(engine: EagleDraftEngine) -> None:
    """The warm-up session is gone afterwards."""
    engine.warm_up()
    assert (engine.num_sessions, engine.kv_reserved_tokens) == (0, 0)


def test_a_broken_head_does_not_warm_up(tmp_path: Path, target_path: Path, device: str) -> None:
    """A head that only gives NaN is found before any client does."""
    head = random_head(tiny_config())
    with torch.no_grad():
        head.fc.weight.fill_(torch.nan)
    save_head(tmp_path / "head", head, dtype=torch.float32)
    engine = load_draft(
        tmp_path / "head", target_path, device=device, dtype="float32", kv_capacity_tokens=600
    )
    with pytest.raises(SessionFailedError):
        engine.warm_up()
    assert engine.num_sessions == 0


def test_a_moved_session_goes_on(engine: EagleDraftEngine) -> None:
    """A session whose KV was moved to make room draws the same tree as before."""
    ballast = ("controller", "ballast")
    engine.open(ballast, DraftOpen(max_length=800))
    for key in (A, B):
        engine.open(key, DraftOpen(max_length=40))
        level_of(run_one(engine, extend(key, 0, 4)))
    expected = level_of(run_one(engine, Expand(B, [0, 1], 3)))
    engine.release(ballast)
    wide = engine.kv_capacity_tokens - engine.kv_reserved_tokens - SCRATCH_TOKENS
    engine.open(ballast, DraftOpen(max_length=wide))
    assert_same(level_of(run_one(engine, Expand(A, [0, 1], 3))), expected)
    engine.check_integrity()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_follows_fp32(
    dtype: str, head_path: Path, target_path: Path, device: str
) -> None:
    """The fast profiles rank about the same children, whatever dtype the features come in."""
    levels = {}
    for name in ("float32", dtype):
        engine = load_draft(
            head_path, target_path, device=device, dtype=name, kv_capacity_tokens=600
        )
        engine.open(A, DraftOpen(max_length=40))
        first = level_of(run_one(engine, extend(A, 0, 6, top_k=8)))
        assert len(level_of(run_one(engine, Expand(A, [0, 1], 4))).tokens) == 2
        levels[name] = dict(zip(first.tokens[0].tolist(), first.logprobs[0].tolist(), strict=True))
    shared = set(levels["float32"]) & set(levels[dtype])
    assert len(shared) >= 6
    for token in shared:
        assert levels[dtype][token] == pytest.approx(levels["float32"][token], abs=0.5)


def test_a_tied_target_serves_both_tables(tmp_path: Path, target_path: Path) -> None:
    """A head without an embedding of its own uses the target's, also when it is tied."""
    write_target(target_path, random_table(1))
    save_head(tmp_path / "head", random_head(tiny_config()), dtype=torch.float32)
    engine = load_draft(
        tmp_path / "head", target_path, device="cpu", dtype="float32", kv_capacity_tokens=600
    )
    naive = naive_draft(tmp_path / "head", target_path)
    engine.open(A, DraftOpen(max_length=40))
    work = extend(A, 0, 4)
    naive.extend(work.tokens, features(4, 0))
    expected = naive.level(None, 3)
    outcome = level_of(run_one(engine, work))
    np.testing.assert_array_equal(outcome.tokens, expected[0])
    head, _ = load_head(tmp_path / "head")
    weights = sum(parameter.numel() for parameter in head.parameters())
    assert engine.info.num_parameters == weights + VOCAB * HIDDEN
