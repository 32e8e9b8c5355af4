"""Forwards of chosen sizes before a worker serves."""

import time
from pathlib import Path

import pytest
import torch

from arborist.core.engine import TargetEngine
from arborist.draft.engine import EagleDraftEngine, load_draft
from arborist.draft.rehearsal import rehearse as rehearse_draft
from arborist.target.engine import load_target
from arborist.target.rehearsal import rehearse as rehearse_target

PAIR = Path(__file__).resolve().parents[2] / "golden" / "eagle2"


@pytest.fixture(scope="module")
def target() -> TargetEngine:
    """Returns the golden target with room for 128 positions."""
    path = PAIR / "target"
    return load_target(path, device="cpu", dtype="float32", kv_capacity_tokens=128)


@pytest.fixture(scope="module")
def draft() -> EagleDraftEngine:
    """Returns the golden head, with room for a few dozen sessions' trees."""
    return load_draft(
        PAIR / "eagle_head",
        PAIR / "target",
        device="cpu",
        dtype="float32",
        kv_capacity_tokens=4096,
    )


@pytest.mark.parametrize("rows", [1, 2, 16, 64])
def test_a_target_says_what_rows_take_and_keeps_nothing(target: TargetEngine, rows: int) -> None:
    """One session, root and a chain."""
    ms = rehearse_target(target, rows, time.perf_counter_ns)

    assert ms is not None
    assert ms > 0
    assert target.kv_reserved_tokens == 0


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 40])
def test_a_draft_says_what_rows_take_and_keeps_nothing(draft: EagleDraftEngine, rows: int) -> None:
    """Eight rows of a session."""
    ms = rehearse_draft(draft, rows, time.perf_counter_ns)

    assert ms is not None
    assert ms > 0
    assert draft.kv_reserved_tokens == 0


def test_rows_that_do_not_fit_are_left_out(target: TargetEngine, draft: EagleDraftEngine) -> None:
    """Neither more nodes than a tree may have, nor more than the KV holds."""
    assert rehearse_target(target, 128, time.perf_counter_ns) is None
    assert rehearse_target(target, 300, time.perf_counter_ns) is None
    assert rehearse_draft(draft, 100_000, time.perf_counter_ns) is None
    assert target.kv_reserved_tokens == draft.kv_reserved_tokens == 0


def test_a_draft_of_few_ids_is_rehearsed_too() -> None:
    """A vocabulary file may name fewer ids than a level of the rehearsal would have."""
    few = load_draft(
        PAIR / "eagle_head",
        PAIR / "target",
        device="cpu",
        dtype="float32",
        kv_capacity_tokens=4096,
        token_ids=[1, 2, 3],
    )

    assert rehearse_draft(few, 4, time.perf_counter_ns) is not None
    assert few.kv_reserved_tokens == 0


def test_a_forward_without_memory_is_left_out(
    target: TargetEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many rows for the device do not stop the start."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr("arborist.common.causal_model.CausalModel.forward", full)

    assert rehearse_target(target, 16, time.perf_counter_ns) is None
    assert target.kv_reserved_tokens == 0
