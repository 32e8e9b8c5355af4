"""Round-by-round equality with recorded runs of the official EAGLE code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.golden.traces import PlainTarget, Trace, read_trace, replay

from arborist.cli.local import LocalModel
from arborist.common.config import ArboristConfig
from arborist.draft.engine import EagleDraftEngine, load_draft
from arborist.orchestrator.api.incoming import IncomingRequest, TokenPrompt
from arborist.orchestrator.generation import SpeculationOptions
from arborist.orchestrator.round import Round
from arborist.target.engine import load_target

TRACES = {"eagle2": "greedy_k4_d3_t8.json", "eagle3": "greedy_k8_d5_t24.json"}


@dataclass(frozen=True)
class Pair:
    """A recorded run and the models it was made with."""

    folder: Path
    trace: Trace
    target: PlainTarget
    draft: EagleDraftEngine


@pytest.fixture(scope="module", params=sorted(TRACES))
def pair(request: pytest.FixtureRequest) -> Pair:
    """Each recorded run: 40 prompts with an EAGLE-2 and with an EAGLE-3 head."""
    folder = Path(__file__).parent / request.param
    draft = load_draft(
        folder / "eagle_head",
        folder / "target",
        device="cpu",
        dtype="float32",
        kv_capacity_tokens=1200,
    )
    spec = draft.feature_spec
    assert spec is not None
    target = PlainTarget(folder / "target", spec.layer_ids)
    return Pair(folder, read_trace(folder / TRACES[request.param]), target, draft)


@pytest.mark.parametrize("case_id", range(40))
def test_every_round_equals_the_official_code(case_id: int, pair: Pair) -> None:
    """Trees, scores, accepted paths, bonus tokens and output are the recorded ones."""
    case = pair.trace.cases[case_id]
    result = replay(case, pair.trace.shape, pair.target, pair.draft)
    assert result.output == case["output"]
    assert result.num_rounds == case["rounds_n"]
    assert result.num_ties == 0
    pair.draft.check_integrity()


def test_the_trace_covers_what_it_is_for(pair: Pair) -> None:
    """The recorded rounds accept little, some and nearly all of a path."""
    counts = {one["accept_length"] for case in pair.trace.cases for one in case["rounds"]}
    assert counts >= {0, 2, 3}
    assert len(pair.trace.cases) == 40


def test_decoding_in_process_accepts_as_recorded(pair: Pair) -> None:
    """Target engine, controller loop and draft together accept in every round what was recorded."""
    shape = pair.trace.shape
    target = load_target(
        pair.folder / "target", device="cpu", dtype="float32", kv_capacity_tokens=512
    )
    model = LocalModel(target, pair.draft, None, ArboristConfig())
    for case in pair.trace.cases[:8]:
        rounds: list[Round] = []
        model.complete(
            IncomingRequest(
                TokenPrompt(tuple(case["prompt"])),
                max_tokens=len(case["output"]),
                ignore_eos=True,
                speculation=SpeculationOptions(
                    enabled=True,
                    depth=shape.depth,
                    top_k=shape.top_k,
                    num_draft_tokens=shape.num_draft_tokens,
                ),
            ),
            on_round=rounds.append,
        )
        recorded = case["rounds"]
        assert [token for one in rounds for token in one.tokens] == case["output"]
        # The last round may be cut at max_tokens.
        assert [one.accepted_count for one in rounds[1 : len(recorded)]] == [
            one["accept_length"] for one in recorded[:-1]
        ]
