"""`train-head` on tiny targets: EAGLE-3 heads, tau, a killed run, other families, bad input."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from tests.unit.target.families import FAMILIES
from tests.unit.training.models import tiny_target
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from arborist.cli import train
from arborist.cli.local import LocalModel
from arborist.cli.train_acceptance import HeadMeter
from arborist.common.config import load_config
from arborist.common.default_pair import default_pair_directory
from arborist.core.features import FeatureSpec
from arborist.draft.engine import load_draft
from arborist.draft.import_head import import_head
from arborist.orchestrator.api.incoming import IncomingRequest, TokenPrompt
from arborist.orchestrator.generation import SpeculationOptions
from arborist.target.engine import load_target
from arborist.training.chat_format import ChatFormat
from arborist.training.generation import greedy_outputs
from arborist.training.head_command import HeadJob, run_head_job
from arborist.training.head_examples import example_of_record
from arborist.training.new_head import HeadPlan, new_head
from arborist.training.records import EncodedRecord, Record, encode_record
from arborist.training.target_states import TargetStates
from arborist.training.target_tokenizer import load_tokenizer
from arborist.training.token_frequencies import frequent_tokens

PROMPTS = [[0, 5 + number, 20 + 3 * number] for number in range(12)]
MAX_TOKENS = 24


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The commands' thread count and signal handlers are put back."""
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target of seven layers, the least the official choice of layers needs, and its outputs."""
    made = tmp_path_factory.mktemp("head")
    target = tiny_target(7, seed=5)
    target.save_pretrained(made / "target")
    with gzip.open(made / "own.jsonl.gz", "wt") as lines:
        for index, output in greedy_outputs(target, PROMPTS, MAX_TOKENS):
            row = {"prompt_ids": PROMPTS[index], "output_ids": output, "source": "test"}
            lines.write(json.dumps(row) + "\n")
    return made


def job(folder: Path, out: Path, **changes: object) -> HeadJob:
    """A short run of an EAGLE-3 head on the tiny target."""
    usual = HeadJob(
        target=folder / "target",
        out=out,
        num_steps=8,
        plan=HeadPlan("eagle3", draft_vocab_size=60),
        outputs=(folder / "own.jsonl.gz",),
        num_passes=3,
        tokens_per_pass=128,
        passes_per_step=2,
        muon_lr=1e-2,
        adam_lr=1e-2,
        warmup_steps=2,
        num_workers=1,
        log_every=1,
        validate_every=4,
    )
    return replace(usual, **changes)


def command(folder: Path, out: Path, more: str = "") -> list[str]:
    """The same run as a command line."""
    words = (
        f"train-head {folder}/target --out {out} --algorithm eagle3 --draft-vocab-size 60 "
        f"--outputs {folder}/own.jsonl.gz --steps 8 --passes 3 --tokens-per-pass 128 "
        "--passes-per-step 2 --muon-lr 1e-2 --adam-lr 1e-2 --warmup 2 --workers 1 --log-every 1 "
        "--validate-every 4 "
    )
    return (words + more).split()


def invoke(words: list[str]) -> Result:
    """Runs a training command in this process."""
    app = typer.Typer()
    train.register(app)
    return CliRunner().invoke(app, words)


def logged(out: Path) -> list[dict]:
    """The entries of a run's log."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def losses(out: Path) -> dict[int, float]:
    """Training loss by step."""
    lines = (out / "log.jsonl").read_text().splitlines(keepends=True)
    # What a killed run wrote last may be half a line.
    entries = [json.loads(line) for line in lines if line.endswith("\n")]
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


def test_eagle3_head_learns_its_target_and_is_served(folder: Path, tmp_path: Path) -> None:
    """A head overfitted on the target's own outputs is accepted, loaded as workers load it."""
    run_head_job(job(folder, tmp_path, num_steps=60))
    limits = {"device": "cpu", "dtype": "float32", "kv_capacity_tokens": 2048}
    target = load_target(folder / "target", name="t", **limits)
    draft = load_draft(tmp_path / "export", folder / "target", **limits)
    assert draft.feature_spec == FeatureSpec((2, 3, 4))
    local = LocalModel(target, draft, None, load_config())
    rounds = tokens = 0
    for prompt in PROMPTS[:6]:
        request = IncomingRequest(TokenPrompt(tuple(prompt)), max_tokens=MAX_TOKENS)
        drafted = local.complete(request)
        plain = local.complete(replace(request, speculation=SpeculationOptions(enabled=False)))
        assert drafted.token_ids == plain.token_ids
        rounds += drafted.summary.speculation.rounds
        tokens += len(drafted.token_ids) - 1
    assert tokens / rounds >= 1.5


def test_exported_eagle3_head_is_in_the_official_format(folder: Path, tmp_path: Path) -> None:
    """`import-head` takes it as it is, with the official tensors and the draft vocabulary."""
    run_head_job(job(folder, tmp_path / "run", num_steps=1))
    found = import_head(tmp_path / "run/export", tmp_path / "imported", folder / "target")
    assert "format: EAGLE-3" in found.lines
    assert "draft vocabulary: 60 of 64 tokens" in found.lines
    assert "features: inputs of layers 2, 3, 4 of 7 (its config)" in found.lines
    assert not any(line.startswith("note") for line in found.lines)


def test_tau_of_held_out_prompts_is_measured_while_training(folder: Path, tmp_path: Path) -> None:
    """Every validation prints tau and writes it to the log, with what it was measured on."""
    result = invoke(command(folder, tmp_path, "--tau-tokens 8"))
    assert result.exit_code == 0, result.output
    taus = [entry for entry in logged(tmp_path) if "validation_loss" in entry]
    assert [entry["step"] for entry in taus] == [4, 8]
    assert all(1 <= entry["validation_tau"] <= 8 for entry in taus)
    assert all(entry["validation_rounds"] > 0 for entry in taus)
    assert f"step 8: validation loss {taus[-1]['validation_loss']:.3f}" in result.output
    assert f"tau {taus[-1]['validation_tau']:.2f}" in result.output


def test_tau_is_bounded_in_time(folder: Path) -> None:
    """Of many prompts only those are decoded that the time allows, and at least a round."""
    states = TargetStates.load(folder / "target", device="cpu", dtype="float32", head_dtype="fp32")
    meter = HeadMeter(states, PROMPTS, max_tokens=64, limit_s=1e-9)
    examples = [EncodedRecord(*_ones(PROMPTS[0]))]
    model, _ = new_head(HeadPlan("eagle3"), states, examples, lambda line: None)
    found = meter(model)
    assert found is None or (found.num_rounds, found.num_prompts) == (1, 1)


def test_killed_run_goes_on_with_the_same_losses(folder: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle, then the same command: every step's loss is that of a calm run."""
    out = tmp_path / "killed"
    # A rate that does not fall depends on no number of steps, so the run may be killed anywhere.
    steady = "--tau-prompts 0 --decay-share 0 --validate-every 100000 "
    words = command(folder, out, f"{steady} --save-every 0 --steps 100000")
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from arborist.cli.main import main; main()", *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 90
        while _num_lines(out / "log.jsonl") < 3 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    num_steps = max(losses(out)) + 3
    assert num_steps >= 6
    result = invoke(command(folder, out, f"{steady} --steps {num_steps}"))
    assert result.exit_code == 0, result.output
    changes = {"num_steps": num_steps, "decay_share": 0.0, "validate_every": 100_000}
    run_head_job(job(folder, tmp_path / "calm", **changes))
    calm = losses(tmp_path / "calm")
    assert sorted(calm) == list(range(1, num_steps + 1))
    assert losses(out) == calm


@pytest.mark.parametrize("algorithm", ["eagle2", "eagle3"])
@pytest.mark.parametrize("name", FAMILIES)
def test_heads_are_trained_for_every_family(name: str, algorithm: str, tmp_path: Path) -> None:
    """Own outputs of any served family train a head of either kind, which its worker loads."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(FAMILIES[name]()).eval()
    model.generation_config.eos_token_id = [1, 3]
    model.save_pretrained(tmp_path / "target")
    with gzip.open(tmp_path / "own.jsonl.gz", "wt") as lines:
        for index, output in greedy_outputs(model, [[4, 9, 5], [7, 6], [8, 30, 11, 12]], 16):
            assert not set(output[:-1]) & {1, 3}
            row = {"prompt_ids": [4, 5 + index], "output_ids": [*output, 8, 9], "source": "test"}
            lines.write(json.dumps(row) + "\n")
    plan = HeadPlan() if algorithm == "eagle2" else HeadPlan("eagle3", feature_layers=(0, 1, 2))
    run_head_job(job(tmp_path, tmp_path / "run", plan=plan, num_steps=2))
    states = [entry["loss"] for entry in logged(tmp_path / "run") if "loss" in entry]
    assert all(torch.isfinite(torch.tensor(states)))
    limits = {"device": "cpu", "dtype": "float32", "kv_capacity_tokens": 1024}
    load_draft(tmp_path / "run/export", tmp_path / "target", **limits)


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_outputs_of_other_families_are_those_of_generate(name: str) -> None:
    """Prompts of different length in one batch decode as each does alone."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(FAMILIES[name]()).eval()
    model.generation_config.eos_token_id = [1, 3]
    prompts = [[4, 9, 5], [7], [8, 30, 11, 12]]
    for index, output in greedy_outputs(model, prompts, 10):
        ids = torch.tensor([prompts[index]])
        alone = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10
        )
        assert output == alone[0, len(prompts[index]) :].tolist()


@pytest.mark.parametrize("algorithm", ["eagle2", "eagle3"])
def test_bf16_trains_and_resumes_from_a_head(folder: Path, tmp_path: Path, algorithm: str) -> None:
    """Autocast lowers the loss as fp32 does, and a finished head is a beginning for the next."""
    plan = HeadPlan(algorithm)
    run_head_job(
        job(folder, tmp_path / "a", plan=plan, dtype="bf16", target_dtype="bf16", num_steps=12)
    )
    first = losses(tmp_path / "a")
    assert first[12] < first[1]
    warm = HeadPlan(algorithm, init=tmp_path / "a/export")
    run_head_job(job(folder, tmp_path / "b", plan=warm, dtype="bf16", num_steps=1))
    assert losses(tmp_path / "b")[1] < first[1]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("--feature-layers 2,3,7", "feature-layers = 7: must be in [0, 7), the target's layers"),
        ("--feature-layers 3,2,4", "feature-layers = [3, 2, 4]: must be ascending"),
        ("--draft-vocab-size 65", "draft-vocab-size = 65: must be in [1, 64], the target's"),
        ("--heads 5", "heads = 5: must be at least 1 and a divisor of 32"),
        ("--kv-heads 3", "kv-heads = 3: must be at least 1 and a divisor of 4"),
        ("--heads 32", "head_dim = 1: must be even"),
        ("--intermediate 0", "intermediate_size = 0: must be at least 1"),
        ("--algorithm eagle4", "algorithm = eagle4: must be eagle2 or eagle3"),
        ("--algorithm eagle2", "draft-vocab-size = 60: must be left out without --algorithm"),
        ("--init {folder}/target", "draft-vocab-size = 60: must be left out with --init"),
        ("--tau-tokens 1", "tau-tokens = 1: must be at least 2"),
        ("--tau-prompts 65", "tau-prompts = 65: must be in [0, 64]"),
        ("--outputs {folder}/none.jsonl.gz", "No such file or directory"),
        ("--data {folder} --texts 2", "target = {folder}/target: must be a model with a tokenizer"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    folder: Path, tmp_path: Path, more: str, line: str
) -> None:
    """What does not fit is named with its limit before anything is trained."""
    result = invoke(command(folder, tmp_path / "run", more.format(folder=folder)))
    assert result.exit_code == 2
    assert line.format(folder=folder) in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run/export").exists()


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"prompt_ids": [0, 5], "output_ids": [7, 8, 64]}, "token id = 64: must be below 64"),
        ({"prompt_ids": [0, 5], "text": "x"}, "bad.jsonl.gz:1: needs `prompt_ids`"),
        ({"prompt_ids": [0, 5], "output_ids": [7]}, "examples = 0: must be at least 2"),
    ],
)
def test_outputs_of_another_target_are_refused(
    folder: Path, tmp_path: Path, row: dict, line: str
) -> None:
    """Token ids that the target does not have, or none to learn, are told in one line."""
    with gzip.open(tmp_path / "bad.jsonl.gz", "wt") as lines:
        lines.write((json.dumps(row) + "\n") * 3)
    words = command(folder, tmp_path / "run")
    words[words.index("--outputs") + 1] = str(tmp_path / "bad.jsonl.gz")
    result = invoke(words)
    assert result.exit_code == 2
    assert line in result.stderr.splitlines()[-1]


def test_target_without_safetensors_is_refused(folder: Path, tmp_path: Path) -> None:
    """Only safetensors are read, and the line says so."""
    (tmp_path / "target").mkdir()
    (tmp_path / "target/config.json").write_text((folder / "target/config.json").read_text())
    (tmp_path / "target/pytorch_model.bin").write_bytes(b"")
    (tmp_path / "own.jsonl.gz").write_bytes((folder / "own.jsonl.gz").read_bytes())
    result = invoke(command(tmp_path, tmp_path / "run"))
    assert result.exit_code == 2
    assert "only safetensors checkpoints are read" in result.stderr.splitlines()[-1]


def test_few_layers_must_be_named(tmp_path: Path, folder: Path) -> None:
    """A target too shallow for the official choice is refused unless layers are named."""
    tiny_target(3).save_pretrained(tmp_path / "target")
    (tmp_path / "own.jsonl.gz").write_bytes((folder / "own.jsonl.gz").read_bytes())
    result = invoke(command(tmp_path, tmp_path / "run"))
    assert result.exit_code == 2
    assert "the target has 3 layers" in result.stderr.splitlines()[-1]


def test_draft_vocabulary_holds_the_most_frequent_labels() -> None:
    """Ids rank by how often they are labels; end tokens are always in, ties go to the smaller."""
    tokens, weights = _ones([0, 9, 9, 9, 7, 7, 5, 4])
    weights[0] = 0.0
    examples = [EncodedRecord(tokens, weights)]
    assert frequent_tokens(examples, 2, 12).token_ids == [7, 9]
    chosen = frequent_tokens(examples, 4, 12, always=[1])
    assert chosen.token_ids == [1, 4, 7, 9]
    assert chosen.coverage == pytest.approx(6 / 7)


def test_default_target_is_spoken_to_as_it_was_trained() -> None:
    """Its chat template gives the token ids of this project's own format."""
    tokenizer = load_tokenizer(default_pair_directory() / "target")
    record = Record("Why is the sky blue?", "Because of the air.")
    ours = encode_record(record, tokenizer)
    example = example_of_record(record, ChatFormat(tokenizer))
    assert example.encoded.token_ids.tolist() == ours.token_ids.tolist()
    assert example.encoded.loss_weights.tolist() == ours.loss_weights.tolist()


def _num_lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def _ones(ids: list[int]) -> tuple:
    tokens = torch.tensor(ids).numpy()
    return tokens, torch.ones(len(ids)).numpy()
