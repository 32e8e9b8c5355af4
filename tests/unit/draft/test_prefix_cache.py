"""Drafts' sessions that begin like earlier ones take over their rows, and draft the same."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.draft.conftest import HIDDEN, VOCAB
from tests.unit.draft.tiny_language_model import tiny_model, write_model
from torch import Tensor

from arborist.core.engine import DraftOpen, ExpandTree, Extend, SessionKey
from arborist.core.errors import ArboristError, SessionFailedError
from arborist.core.pool import Pool
from arborist.core.prefix import Prefix
from arborist.core.tree import Level
from arborist.draft.any_draft import load_any_draft
from arborist.draft.engine import EagleDraftEngine
from arborist.draft.run_ahead import RunAheadDraft
from arborist.draft.tree_engine import DraftForward, TreeDraftEngine

FIRST: SessionKey = ("controller", "first")
SECOND: SessionKey = ("controller", "second")
TEXT = torch.randint(0, 50, (12,), generator=torch.Generator().manual_seed(4)).tolist()
FEATURES = torch.randn(12, HIDDEN, generator=torch.Generator().manual_seed(5))


def open_sharing(
    engine: TreeDraftEngine | RunAheadDraft, session: SessionKey, tokens: list[int], scope: str = ""
) -> int:
    """Opens a session that shares, and returns what it took over."""
    engine.open(session, DraftOpen(40, None, Prefix.of(scope, tokens)))
    return engine.num_reused(session)


def end(engine: TreeDraftEngine | RunAheadDraft, session: SessionKey) -> None:
    """Ends a session the way the worker does."""
    engine.keep(session)
    engine.release(session)


def pairs(session: SessionKey, text: list[int], begin: int, top_k: int = 0) -> Extend:
    """Everything of a text that a head does not hold yet."""
    features: Tensor = FEATURES[begin : len(text) - 1]
    return Extend(session, begin, text[begin + 1 :], features, top_k)


def drafted(
    engine: TreeDraftEngine | RunAheadDraft, extend: Extend
) -> list[tuple[list[list[int]], np.ndarray]]:
    """Tokens and log-probs of every level of a tree."""
    (level,) = engine.run([extend])
    assert isinstance(level, Level), level
    (pool,) = engine.run([ExpandTree(extend.session, "eagle2", 3, extend.top_k)])
    assert isinstance(pool, Pool), pool
    levels = [level, *(one.level for one in pool.levels)]
    return [(one.tokens.tolist(), one.logprobs) for one in levels]


def assert_same_trees(
    ours: list[tuple[list[list[int]], np.ndarray]], theirs: list[tuple[list[list[int]], np.ndarray]]
) -> None:
    """Same tokens; log-probs up to rounding."""
    for (our_tokens, ours_at), (tokens, theirs_at) in zip(ours, theirs, strict=True):
        assert our_tokens == tokens
        np.testing.assert_allclose(ours_at, theirs_at, atol=2e-5)


@pytest.mark.parametrize("common", range(1, 12))
def test_pairs_taken_over_draft_like_pairs_extended(engine: EagleDraftEngine, common: int) -> None:
    """However much two texts share, a pair is reused only if the token after it is the same."""
    other = [*TEXT[:common], *((token + 1) % 50 for token in TEXT[common:])]
    alone = copy.copy(engine)
    alone.open(FIRST, DraftOpen(40))
    expected = drafted(alone, pairs(FIRST, other, 0, 3))
    alone.release(FIRST)

    engine.share_prefixes(100)
    assert open_sharing(engine, FIRST, TEXT) == 0
    engine.run([pairs(FIRST, TEXT, 0)])
    end(engine, FIRST)
    held = open_sharing(engine, SECOND, other)

    assert held == common - 1
    engine.check_integrity()
    assert_same_trees(drafted(engine, pairs(SECOND, other, held, 3)), expected)
    engine.check_integrity()


def test_nothing_is_taken_over_from_another_scope_or_beginning(engine: EagleDraftEngine) -> None:
    """Tenants are apart, and the token before the first pair counts too."""
    engine.share_prefixes(100)
    open_sharing(engine, FIRST, TEXT, "a")
    engine.run([pairs(FIRST, TEXT, 0)])
    end(engine, FIRST)
    assert open_sharing(engine, SECOND, TEXT, "b") == 0
    assert open_sharing(engine, SECOND, [TEXT[0] + 1, *TEXT[1:]], "a") == 0
    assert open_sharing(engine, SECOND, [], "a") == 0
    assert open_sharing(engine, SECOND, TEXT, "a") == len(TEXT) - 1
    counts = engine.prefix_counts
    assert (counts.num_queried, counts.num_hits) == (4 * (len(TEXT) - 1), len(TEXT) - 1)
    assert counts.num_cached == len(TEXT) - 1


def test_scratch_and_failed_work_are_never_kept(engine: EagleDraftEngine) -> None:
    """Only true pairs are left, also when a forward over several sessions broke half way."""
    engine.share_prefixes(100)
    open_sharing(engine, FIRST, TEXT)
    drafted(engine, pairs(FIRST, TEXT[:6], 0, 3))
    (refused,) = engine.run([pairs(FIRST, TEXT, 2)])
    assert isinstance(refused, ArboristError)
    engine.check_integrity()
    end(engine, FIRST)
    assert open_sharing(engine, SECOND, TEXT) == 5


def test_running_ahead_shares_too(engine: EagleDraftEngine) -> None:
    """The wrapper hands on what sessions leave and take over."""
    engine.share_prefixes(100)
    ahead = RunAheadDraft(engine)
    open_sharing(ahead, FIRST, TEXT)
    ahead.run([pairs(FIRST, TEXT, 0)])
    end(ahead, FIRST)
    assert open_sharing(ahead, SECOND, TEXT) == len(TEXT) - 1
    assert ahead.prefix_counts.num_hits == len(TEXT) - 1


def test_a_language_model_takes_over_tokens(tmp_path: Path, device: str) -> None:
    """It holds one row per token, the first included, and drafts as if it had read them all."""
    folder = write_model(tmp_path / "model", tiny_model("llama"))
    engine = load_any_draft(folder, folder, device=device, dtype="float32", kv_capacity_tokens=3000)
    text = [token % VOCAB for token in TEXT]
    engine.open(FIRST, DraftOpen(40))
    expected = drafted(engine, Extend(FIRST, 0, text, None, 3))
    engine.release(FIRST)

    engine.share_prefixes(100)
    open_sharing(engine, FIRST, text)
    engine.run([Extend(FIRST, 0, text, None)])
    end(engine, FIRST)
    held = open_sharing(engine, SECOND, text[:-1])

    assert held == len(text) - 1
    assert_same_trees(drafted(engine, Extend(SECOND, held, text[held:], None, 3)), expected)


@pytest.mark.parametrize("top_k", [0, 3])
def test_a_session_that_failed_leaves_nothing(
    engine: EagleDraftEngine, monkeypatch: pytest.MonkeyPatch, top_k: int
) -> None:
    """Neither what a broken forward wrote nor what the session held before it."""
    engine.share_prefixes(100)
    open_sharing(engine, FIRST, TEXT)
    engine.run([pairs(FIRST, TEXT[:6], 0)])
    forward = engine._forward

    def broken(*given):
        made = forward(*given)
        assert made.states is not None
        return DraftForward(made.logits * torch.nan, made.states * torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_forward", broken)
        (failed,) = engine.run([pairs(FIRST, TEXT, 5, top_k)])
    assert isinstance(failed, SessionFailedError)
    engine.check_integrity()
    end(engine, FIRST)
    assert open_sharing(engine, SECOND, TEXT) == 0


def test_a_copy_without_memory_is_no_error(
    engine: EagleDraftEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is taken over then, and a copy that cannot be kept costs no other one."""
    engine.share_prefixes(100)
    open_sharing(engine, FIRST, TEXT)
    engine.run([pairs(FIRST, TEXT[:6], 0)])
    engine.keep(FIRST)
    engine.run([pairs(FIRST, TEXT, 5)])

    def full(*_):
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(engine._kv, "rows", full)
        assert open_sharing(engine, SECOND, TEXT) == 0
        with pytest.raises(torch.OutOfMemoryError):
            engine.keep(FIRST)
    engine.check_integrity()
    assert open_sharing(engine, SECOND, TEXT) == 5
