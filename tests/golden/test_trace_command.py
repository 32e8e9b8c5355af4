"""`arborist trace` writes the rounds that the official EAGLE code went through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.golden.traces import SCORE_TOLERANCE, Trace, read_trace

from arborist.cli.main import main

FOLDER = Path(__file__).parent
SAME_KEYS = (
    "prefix_len",
    "tokens",
    "parents",
    "depths",
    "expanded",
    "accepted_nodes",
    "target_argmax",
)


def run_trace(folder: Path, trace: Trace, prompts: Path, out: Path) -> None:
    """Runs the command on a recorded run's models and tree."""
    shape = trace.shape
    # The official loop commits whole paths beyond its limit; the first root comes on top.
    max_tokens = 1 + max(len(case["output"]) for case in trace.cases)
    options = {
        "--target": folder / "target",
        "--draft": folder / "eagle_head",
        "--prompts-file": prompts,
        "--out": out,
        "--policy": "eagle2",
        "--depth": shape.depth,
        "--top-k": shape.top_k,
        "--num-draft-tokens": shape.num_draft_tokens,
        "--max-tokens": max_tokens,
    }
    with pytest.raises(SystemExit) as caught:
        main(["trace", *(str(one) for pair in options.items() for one in pair)])
    assert caught.value.code == 0


@pytest.mark.parametrize("path", ["eagle2/greedy_k4_d3_t8.json", "eagle3/greedy_k8_d5_t24.json"])
def test_every_line_equals_the_official_code(path: str, tmp_path: Path) -> None:
    """Trees, scores, frontiers, the target's tokens and what was accepted are the recorded ones."""
    trace = read_trace(FOLDER / path)
    cases = trace.cases[::4]
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "trace.jsonl"
    prompts.write_text(
        "\n".join(json.dumps({"id": one["id"], "prompt_ids": one["prompt"]}) for one in cases)
    )

    run_trace((FOLDER / path).parent, trace, prompts, out)

    lines = [json.loads(line) for line in out.read_text().splitlines()]
    for case in cases:
        ours = [line for line in lines if line["id"] == case["id"]]
        assert len(ours) >= case["rounds_n"]
        for index, (line, recorded) in enumerate(zip(ours, case["rounds"], strict=False)):
            assert line["scores"] == pytest.approx(recorded["scores"], abs=SCORE_TOLERANCE, rel=0)
            assert line == {
                "id": case["id"],
                "round_index": index,
                "bonus_token": recorded["next_root"],
                "scores": line["scores"],
                **{key: recorded[key] for key in SAME_KEYS},
            }
