"""What `make-outputs` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from arborist.common.causal_model import load_causal_lm
from arborist.common.model_files import ModelFiles
from arborist.training.own_outputs import (
    pick_prompts,
    read_own_outputs,
    write_corrections,
    write_own_outputs,
)
from arborist.training.records import read_files
from arborist.training.target_tokenizer import load_tokenizer


@dataclass(frozen=True)
class OutputsJob:
    """Everything `make-outputs` was told."""

    target: Path
    data: Path
    out: Path
    mix: dict[str, float]
    num_prompts: int
    max_new_tokens: int = 128
    max_prompt_tokens: int = 512
    batch_size: int = 64
    keep_loops: bool = False
    corrections: Path | None = None
    device: str = "cpu"
    num_threads: int = 2
    seed: int = 0


def run_outputs_job(job: OutputsJob) -> dict[str, int]:
    """Write the target's own greedy outputs; returns the counts.

    Raises:
        ValueError: a setting that does not fit, in one line.
        ArboristError: a target that cannot be loaded, in one line.
    """
    torch.set_num_threads(job.num_threads)
    tokenizer = load_tokenizer(job.target)
    model = load_causal_lm(ModelFiles(job.target), device=job.device, dtype="float32")
    prompts = pick_prompts(
        read_files(job.data, job.mix),
        job.mix,
        job.num_prompts,
        tokenizer,
        max_prompt_tokens=job.max_prompt_tokens,
        seed=job.seed,
    )
    counts = write_own_outputs(
        model, prompts, job.out, job.max_new_tokens, job.batch_size, job.keep_loops
    )
    if job.corrections is not None:
        outputs = list(read_own_outputs(job.out))
        counts.update(write_corrections(job.corrections, outputs, tokenizer))
    return counts
