"""What `train-target` does: from folders and numbers to a trained, exported target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from arborist.training.depth_split import split_depth
from arborist.training.mixture import Mixture
from arborist.training.records import data_files, read_files
from arborist.training.replicas import Replicas
from arborist.training.target_model import (
    export_target,
    freeze_bottom,
    fresh_target,
    make_optimizer,
    warm_target,
)
from arborist.training.target_trainer import TargetRun, TargetTrainer


@dataclass(frozen=True)
class TargetJob:
    """Everything `train-target` was told."""

    data: Path
    out: Path
    mix: dict[str, float]
    num_steps: int
    init: Path | None = None
    keep_layers: list[int] | None = None
    split_layers: int = 1
    split_intermediate: int | None = None
    freeze_layers: int = 0
    tokenizer: Path | None = None
    num_layers: int = 10
    hidden_size: int = 384
    lengths: tuple[tuple[int, float], ...] = ((512, 1.0),)
    tokens_per_step: int = 8192
    tokens_per_pass: int = 1024
    muon_lr: float = 3e-3
    adam_lr: float = 1e-3
    warmup_steps: int = 20
    decay_share: float = 0.5
    prompt_weight: float = 0.0
    device: str = "cpu"
    dtype: str = "fp32"
    num_threads: int = 1
    num_workers: int = 2
    seed: int = 0
    validate_every: int = 100


def run_target_job(job: TargetJob) -> None:
    """Train (or go on training) and export to ``out/export``.

    Raises:
        ValueError: a setting that does not fit, in one line.
    """
    torch.set_num_threads(job.num_threads)
    if job.dtype not in ("fp32", "bf16"):
        raise ValueError(f"dtype `{job.dtype}`: fp32 or bf16")
    source = job.tokenizer or job.init
    if source is None:
        raise ValueError("tokenizer: give --tokenizer or --init")
    tokenizer = AutoTokenizer.from_pretrained(source)
    records = read_files(job.data / "train", job.mix)
    mixture = Mixture(records, job.mix, tokenizer, job.seed, job.prompt_weight)
    model = _model(job, tokenizer, mixture).to(job.device)
    freeze_bottom(model, job.freeze_layers)
    replicas = Replicas(model, job.num_workers)
    trainer = TargetTrainer(
        model,
        make_optimizer(model, job.muon_lr, job.adam_lr, replicas=replicas),
        mixture,
        read_files(job.data / "val", data_files(job.data / "val")),
        tokenizer,
        _run(job),
        job.out,
        replicas,
    )
    trainer.train()
    trainer.validate()
    export_target(model.cpu(), tokenizer, job.out / "export")


def _run(job: TargetJob) -> TargetRun:
    return TargetRun(
        num_steps=job.num_steps,
        tokens_per_step=job.tokens_per_step,
        tokens_per_pass=job.tokens_per_pass,
        lengths=job.lengths,
        warmup_steps=job.warmup_steps,
        decay_share=job.decay_share,
        seed=job.seed,
        dtype=job.dtype,
        device=job.device,
        validate_every=job.validate_every,
    )


def _model(
    job: TargetJob, tokenizer: PreTrainedTokenizerFast, mixture: Mixture
) -> LlamaForCausalLM:
    if job.init is not None:
        model = warm_target(job.init, job.keep_layers)
        if job.split_layers == 1 and job.split_intermediate is None:
            return model
        neurons = job.split_intermediate or model.config.intermediate_size // job.split_layers
        calibration = mixture.batch(0, 8, 512).token_ids  # [8, 512]
        return split_depth(model, job.split_layers, neurons, calibration)
    if (job.keep_layers, job.split_layers, job.split_intermediate) != (None, 1, None):
        raise ValueError("keep-layers, split-layers and split-intermediate shape --init: give it")
    heads = max(1, job.hidden_size // 64)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=job.hidden_size,
        intermediate_size=-(-job.hidden_size * 8 // 3 // 128) * 128,
        num_hidden_layers=job.num_layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 3),
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return fresh_target(config, job.seed)
