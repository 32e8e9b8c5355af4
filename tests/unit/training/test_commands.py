"""The commands of the training guide, one after the other, on next to nothing."""

import gzip
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from arborist.cli import train
from arborist.common.default_pair import default_pair_directory
from arborist.draft.engine import load_draft
from arborist.target.engine import load_target

TARGET = (
    "train-target {folder}/data --out {folder}/target --tokenizer {tokenizer} --layers 1 "
    "--hidden 64 --mix own_instructions=.5,text=.5 --steps 2 --tokens-per-step 256 "
    "--tokens-per-pass 128 --lengths 32=.5,64=.5 --workers 1"
)
COMMANDS = (
    "make-instructions {folder}/data/train --out {folder}/data/train --templates 40",
    TARGET,
    "make-outputs {folder}/target/export {folder}/data/train --out {folder}/loops.jsonl.gz "
    "--keep-loops --corrections {folder}/data/train/own_corrections.jsonl.gz "
    "--mix own_instructions=1 --prompts 8 --max-new-tokens 32 --batch-size 8 --threads 1",
    # The same command goes on where it stopped; the number of steps may change.
    TARGET.replace("--steps 2", "--steps 3"),
    "train-head {folder}/target/export --out {folder}/head --outputs {folder}/loops.jsonl.gz "
    "--data {folder}/data/train --texts 4 --mix text=1 --steps 2 --passes 2 "
    "--tokens-per-pass 128 --passes-per-step 1 --workers 1",
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A data folder; the commands' signal handlers and thread count are put back."""
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    num_threads = torch.get_num_threads()
    for part in ("train", "val"):
        (tmp_path / "data" / part).mkdir(parents=True)
        with gzip.open(tmp_path / "data" / part / "text.jsonl.gz", "wt") as file:
            for number in range(4):
                text = f"Tree number {number} has leaves, and every leaf hangs from its root."
                file.write(json.dumps({"text": text, "source": "test"}) + "\n")
    yield tmp_path
    torch.set_num_threads(num_threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_guide_makes_a_pair_that_is_served(folder: Path) -> None:
    """From texts and a tokenizer to a target and a head that the workers load."""
    app = typer.Typer()
    train.register(app)
    tokenizer = default_pair_directory() / "target"
    for command in COMMANDS:
        words = command.format(folder=folder, tokenizer=tokenizer).split()
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, f"{words[0]}: {result.output} {result.exception}"
    target = load_target(
        folder / "target/export", device="cpu", dtype="float32", kv_capacity_tokens=256, name="t"
    )
    draft = load_draft(
        folder / "head/export",
        folder / "target/export",
        device="cpu",
        dtype="float32",
        kv_capacity_tokens=256,
    )

    assert target.info.embedding_digest == draft.info.embedding_digest
    assert (target.info.hidden_size, target.info.num_layers) == (64, 1)
