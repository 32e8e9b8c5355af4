"""Round-by-round equality with recorded runs of the official EAGLE code."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.golden.traces import PlainTarget, Trace, read_trace, replay

from arborist.draft.engine import EagleDraftEngine, load_draft

FOLDER = Path(__file__).parent / "eagle2"


@pytest.fixture(scope="module")
def trace() -> Trace:
    """The recorded run: top_k 4, 4 levels, 7 drafted tokens, 40 prompts."""
    return read_trace(FOLDER / "greedy_k4_d3_t8.json")


@pytest.fixture(scope="module")
def target() -> PlainTarget:
    """The tiny target."""
    return PlainTarget(FOLDER / "target")


@pytest.fixture(scope="module")
def draft() -> EagleDraftEngine:
    """The tiny head."""
    return load_draft(
        FOLDER / "eagle_head",
        FOLDER / "target",
        device="cpu",
        dtype="float32",
        kv_capacity_tokens=1024,
    )


@pytest.mark.parametrize("case_id", range(40))
def test_every_round_equals_the_official_code(
    case_id: int, trace: Trace, target: PlainTarget, draft: EagleDraftEngine
) -> None:
    """Trees, scores, accepted paths, bonus tokens and output are the recorded ones."""
    case = trace.cases[case_id]
    result = replay(case, trace.shape, target, draft)
    assert result.output == case["output"]
    assert result.num_rounds == case["rounds_n"]
    assert result.num_ties == 0
    draft.check_integrity()


def test_the_trace_covers_what_it_is_for(trace: Trace) -> None:
    """The recorded rounds accept none, some and nearly all of a path of four."""
    counts = {one["accept_length"] for case in trace.cases for one in case["rounds"]}
    assert counts >= {0, 1, 2, 3}
    assert len(trace.cases) == 40
