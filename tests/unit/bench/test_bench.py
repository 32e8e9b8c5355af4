"""The benchmark's own arithmetic: question files, loops, tau, ratios, equality."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from arborist.cli.bench.output import Output, first_difference
from arborist.cli.bench.questions import Question, read_questions
from arborist.cli.bench.report import mode_figures, ratios, repetition_speeds
from arborist.core.errors import InvalidArgumentError
from arborist.core.loops import loops
from arborist.core.tree import VerifyTree
from arborist.orchestrator.round import Phase, Round


def round_of(accepted: int, *, draft_ms: float = 2.0, verify_ms: float = 6.0) -> Round:
    """Returns a round of 10 ms that accepted some of four drafted nodes."""
    tree = VerifyTree([1, 2, 3, 4], [0, 1, 2, 3], [-0.1] * 4, [0, 1, 2, 3])
    ms = 1_000_000
    return Round(
        round_index=0,
        prefix_length=5,
        root=0,
        span_id=0,
        start_ns=0,
        end_ns=10 * ms,
        phases=[
            Phase("draft.extend", 0, 0, 3 * ms, compute_ms=draft_ms, remote=True),
            Phase("draft.expand", 0, 3 * ms, 3 * ms, remote=True, same_call=True),
            Phase("target.verify", 0, 3 * ms, 9 * ms + ms // 2, compute_ms=verify_ms, remote=True),
        ],
        tree=tree,
        accepted_nodes=tuple(range(1, accepted + 1)),
        speculated=True,
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_question_files_are_read_plain_and_gzipped(tmp_path: Path, suffix: str) -> None:
    """EAGLE's and Spec-Bench's fields are understood, whatever the compression."""
    path = tmp_path / f"questions{suffix}"
    lines = [{"question_id": 81, "turns": ["a", "b"]}, {"id": "x", "turns": ["c"]}]
    text = "\n".join(json.dumps(line) for line in lines) + "\n\n"
    with gzip.open(path, "wt") if suffix.endswith("gz") else path.open("w") as file:
        file.write(text)

    assert read_questions(path) == [Question("81", ("a", "b")), Question("x", ("c",))]


def test_a_limit_spreads_over_the_file(tmp_path: Path) -> None:
    """Fewer questions are taken evenly from the file, not from its beginning."""
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps({"turns": [str(i)]}) for i in range(10)))

    assert [q.turns[0] for q in read_questions(path, 5)] == ["0", "2", "4", "6", "8"]


@pytest.mark.parametrize("content", ["", "not json", '{"turns": []}', '{"text": "x"}', "[1]"])
def test_a_bad_question_file_is_refused(tmp_path: Path, content: str) -> None:
    """Missing, empty and malformed files are refused by name."""
    path = tmp_path / "q.jsonl"
    path.write_text(content)

    with pytest.raises(InvalidArgumentError, match=r"q\.jsonl"):
        read_questions(path)
    with pytest.raises(InvalidArgumentError, match="existing file"):
        read_questions(tmp_path / "none.jsonl")


def test_a_loop_is_an_8_gram_seen_three_times() -> None:
    """Two repetitions are not a loop, three are."""
    gram = list(range(8))

    assert not loops([*gram, *gram])
    assert loops([*gram, 99, *gram, 98, *gram])
    assert not loops([1, 2, 3])


def test_the_first_difference_counts_length() -> None:
    """An output that ends early differs where it ends."""
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 9, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2


def test_figures_of_a_mode() -> None:
    """tau, speed, bytes and the split of a round follow from the outputs."""
    slow = Output([1, 2, 3, 4, 5], 2.0, [round_of(1), round_of(1)])
    fast = Output([1, 2, 3, 4, 5], 1.0, [round_of(2), round_of(0)])
    plain = [Output([1, 2, 3, 4, 6], 4.0)]

    figures = mode_figures([[slow], [fast]], plain, lambda ids: "ab" * len(ids), {})

    assert figures["tokens_per_s"] == 3.0
    assert figures["tau"] == 2.0
    assert figures["bytes_per_round"] == 4.0
    assert figures["draft_tokens_per_round"] == 4.0
    assert figures["draft_calls_per_round"] == 1.0
    assert figures["draft_forwards_per_round"] == 2.0
    assert figures["outputs_equal_to_plain"] == 0
    assert figures["flips_per_1000_tokens"] == 200.0
    assert figures["round_ms"] == {
        "draft_compute": 2.0,
        "verify_compute": 6.0,
        "transport": 1.5,
        "controller": 0.5,
        "total": 10.0,
    }


def test_ratios_are_medians_of_side_by_side_repetitions() -> None:
    """A ratio compares repetition with repetition, so that common noise cancels."""
    speeds = {
        "plain": repetition_speeds([[Output([1, 2], s)] for s in (1.0, 2.0, 4.0)]),
        "eagle2": repetition_speeds([[Output([1, 2], s)] for s in (0.5, 1.0, 2.0)]),
    }

    assert ratios(speeds) == {"eagle2/plain": 2.0}
