"""Greedy outputs, loops and what becomes of them."""

from pathlib import Path

import torch
from tests.unit.training.models import LetterEncoder, tiny_target

from arborist.core.loops import loops
from arborist.training.generation import greedy_outputs
from arborist.training.own_outputs import (
    OwnOutput,
    end_of_first_lap,
    pick_prompts,
    read_own_outputs,
    write_corrections,
    write_own_outputs,
)
from arborist.training.records import Record, read_records

ENCODER = LetterEncoder()


def test_batched_greedy_equals_generate() -> None:
    """Prompts of different length in one batch decode as `generate` decodes each alone."""
    target = tiny_target()
    prompts = [[0, 5, 9, 30], [0, 7], [0, 11, 12, 13, 14, 15]]
    outputs = dict(greedy_outputs(target, prompts, 12, batch_size=3))
    for index, prompt in enumerate(prompts):
        expected = target.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        assert outputs[index] == expected[0, len(prompt) :].tolist()


def test_batch_goes_on_when_a_row_ends() -> None:
    """A row that meets the end token stops there and the others go on."""
    target = tiny_target()
    prompts = [[0, 5, 9, 30], [0, 7], [0, 11, 12, 13]]
    free = dict(greedy_outputs(target, prompts, 8))
    target.generation_config.eos_token_id = [free[0][2], 63]
    ended = dict(greedy_outputs(target, prompts, 8))
    for index, output in free.items():
        end = output.index(free[0][2]) + 1 if free[0][2] in output else len(output)
        assert ended[index] == output[:end]


def test_three_times_the_same_run_is_a_loop() -> None:
    """Eight tokens three times are a loop, twice are not."""
    run = list(range(10, 18))
    assert loops([*run, 1, *run, 2, *run])
    assert not loops([*run, 1, *run, 2])
    assert not loops([])


def test_loop_is_cut_before_its_second_lap_at_a_break() -> None:
    """What is kept ends at a break and holds no repeated run."""
    lap = [*range(20, 28), 5]
    output = [9, 9, 5, *lap, *lap, *lap]
    assert end_of_first_lap(output, {5}) == 12
    assert end_of_first_lap(lap, {5}) == len(lap)


def test_written_outputs_come_back_without_loops(tmp_path: Path) -> None:
    """A random target loops soon: those outputs are counted, not written, unless asked for."""
    target = tiny_target()
    prompts = [("a", [0, 5 + number]) for number in range(6)]
    counts = write_own_outputs(target, prompts, tmp_path / "o.jsonl.gz", 60)
    outputs = list(read_own_outputs(tmp_path / "o.jsonl.gz"))
    assert counts["kept"] == len(outputs)
    assert not any(loops(output.output_ids) for output in outputs)
    everything = write_own_outputs(target, prompts, tmp_path / "all.jsonl.gz", 60, keep_loops=True)
    assert everything["kept"] + everything["repeated"] == 6
    assert everything["looping"] == counts["looping"]


def test_corrections_end_or_cut(tmp_path: Path) -> None:
    """Ended outputs stay, loops are cut, outputs at the limit are left out."""
    stop = ENCODER.encode(".")[0]
    lap = [*range(20, 28), stop]
    outputs = [
        OwnOutput([0, 4], [6, 7, 8, 9, 1], "a"),
        OwnOutput([0, 4], [6, 7, 8, stop, *lap, *lap, *lap], "a"),
        OwnOutput([0, 4], list(range(30, 60)), "a"),
    ]
    path = tmp_path / "corrections.jsonl.gz"
    counts = write_corrections(path, outputs, ENCODER)
    assert counts == {"ended": 1, "cut": 1, "left_out": 1}
    records = list(read_records(path))
    assert records[0].output_ids == (6, 7, 8, 9)
    assert not loops(list(records[1].output_ids))
    assert records[1].output_ids[:4] == (6, 7, 8, stop)
    lap_start = records[2].unlikely_from
    assert lap_start is not None
    assert tuple(lap[:8]) in (records[2].output_ids[lap_start : lap_start + 8],) or (
        records[2].output_ids[lap_start] == stop
    )


def test_prompts_are_picked_once_and_by_share() -> None:
    """No prompt comes twice, texts give their beginning, long prompts are passed over."""
    records = {
        "chat": [Record(f"q{number}", "r") for number in range(20)] + [Record("q1", "other")],
        "text": [Record("a" * 100), Record("b" * 100)],
    }
    picked = pick_prompts(records, {"chat": 0.8, "text": 0.2}, 10, ENCODER, text_tokens=6)
    assert [name for name, _ in picked].count("chat") == 8
    assert all(len(ids) == 6 for name, ids in picked if name == "text")
    assert len({tuple(ids) for _, ids in picked}) == len(picked)
    assert not pick_prompts(records, {"chat": 1.0}, 5, ENCODER, max_prompt_tokens=3)
