"""What `train-head` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from arborist.core.engine import ModelInfo
from arborist.core.errors import InvalidArgumentError
from arborist.training.acceptance import MeasureAcceptance
from arborist.training.chat_format import ChatFormat
from arborist.training.eagle3_loss import Eagle3Loss
from arborist.training.head_examples import HeadExample, example_of_output, example_of_record
from arborist.training.head_loss import HeadLoss
from arborist.training.head_objective import Eagle2Objective, Eagle3Objective, HeadObjective
from arborist.training.head_trainer import HeadRun, HeadTrainer, describe_validation
from arborist.training.new_head import HeadPlan, export_head, new_head
from arborist.training.own_outputs import read_own_outputs
from arborist.training.records import data_files, read_files
from arborist.training.replicas import Replicas
from arborist.training.target_model import make_optimizer
from arborist.training.target_states import TargetStates
from arborist.training.target_tokenizer import load_tokenizer

VALIDATION_SHARE = 0.02
MAX_VALIDATION = 64
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

MakeMeasure: TypeAlias = Callable[[TargetStates, Sequence[Sequence[int]]], MeasureAcceptance]
"""Given the target and token ids of held-out prompts, returns what decodes them with a head."""


@dataclass(frozen=True)
class HeadJob:
    """Everything `train-head` was told; None = the algorithm's or the target's own."""

    target: str | Path
    out: Path
    num_steps: int
    plan: HeadPlan = field(default_factory=HeadPlan)
    outputs: tuple[Path, ...] = ()
    data: Path | None = None
    mix: dict[str, float] | None = None
    num_texts: int = 0
    num_passes: int | None = None
    pass_decay: float | None = None
    feature_weight: float = 0.2
    noise: float = 0.1
    max_tokens: int = 512
    tokens_per_pass: int = 1024
    passes_per_step: int = 4
    muon_lr: float = 3e-3
    adam_lr: float = 1e-3
    warmup_steps: int = 20
    decay_share: float = 0.5
    device: str = "cpu"
    dtype: str = "fp32"
    target_dtype: str = "fp32"
    num_threads: int = 1
    num_workers: int = 2
    cache_mib: int = 4096
    seed: int = 0
    save_every_s: float = 180.0
    log_every: int = 10
    validate_every: int = 100
    tau_prompts: int = 16


def run_head_job(
    job: HeadJob,
    make_measure: MakeMeasure | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Train (or go on training) a head and write it to ``out/export``.

    Args:
        job: what was asked.
        make_measure: of tau on held-out prompts; None = tau is not measured.
        report: takes lines for people.
    Raises:
        ValueError: a setting that does not fit, in one line.
        ArboristError: a model that cannot be loaded or a setting out of range, in one line.
    """
    _check(job)
    torch.set_num_threads(job.num_threads)
    torch.manual_seed(job.seed)
    states = TargetStates.load(
        job.target, device=job.device, dtype=DTYPES[job.target_dtype], head_dtype=job.dtype
    )
    examples = _examples(job, states.model.info)
    held, learnt = _split(examples)
    model, layers = new_head(job.plan, states, [example.encoded for example in learnt], report)
    states.watch(layers)
    model.to(job.device)
    replicas = Replicas(model, job.num_workers)
    measure = None
    prompts = [example.prompt_ids for example in held if example.num_prompt_tokens][
        : job.tau_prompts
    ]
    if make_measure is not None and prompts:
        measure = make_measure(states, prompts)
    trainer = HeadTrainer(
        model,
        states,
        make_optimizer(model, job.muon_lr, job.adam_lr, replicas=replicas),
        [example.encoded for example in learnt],
        [example.encoded for example in held],
        _objective(job, states),
        _run(job),
        job.out,
        replicas=replicas,
        measure=measure,
        recipe=job.plan.recipe() | {"seed": job.seed, "target": states.model.info.digest},
    )
    trainer.train()
    report(describe_validation(trainer.validate()))
    export_head(job.out / "export", model)


def _check(job: HeadJob) -> None:
    if job.dtype not in ("fp32", "bf16"):
        raise InvalidArgumentError("dtype", job.dtype, "fp32 or bf16")
    if job.target_dtype not in DTYPES:
        raise InvalidArgumentError("target-dtype", job.target_dtype, f"one of {', '.join(DTYPES)}")
    bounds = {
        "steps": (job.num_steps, 1, 10_000_000),
        "passes": (job.num_passes or 1, 1, 16),
        "max-tokens": (job.max_tokens, 3, 1 << 20),
        "tokens-per-pass": (job.tokens_per_pass, 1, 1 << 24),
        "passes-per-step": (job.passes_per_step, 1, 4096),
        "workers": (job.num_workers, 1, 256),
        "threads": (job.num_threads, 1, 1024),
        "log-every": (job.log_every, 1, 10_000_000),
        "validate-every": (job.validate_every, 1, 10_000_000),
        "tau-prompts": (job.tau_prompts, 0, MAX_VALIDATION),
        "cache-mib": (job.cache_mib, 0, 1 << 24),
    }
    for name, (value, least, most) in bounds.items():
        if not least <= value <= most:
            raise InvalidArgumentError(name, value, f"in [{least}, {most}]")


def _examples(job: HeadJob, info: ModelInfo) -> list[HeadExample]:
    """All examples in random order."""
    examples = [example_of_output(one) for path in job.outputs for one in read_own_outputs(path)]
    generator = np.random.default_rng(job.seed)
    if job.data is not None and job.num_texts:
        chat = ChatFormat(load_tokenizer(job.target))
        mix = job.mix or dict.fromkeys(data_files(job.data), 1.0)
        total = sum(mix.values())
        for name, records in read_files(job.data, mix).items():
            count = min(len(records), round(job.num_texts * mix[name] / total))
            for index in generator.permutation(len(records))[:count]:
                record = records[int(index)]
                # What the target is to unlearn is not what it says.
                if record.unlikely_from is None:
                    examples.append(example_of_record(record, chat))
    limit = min(job.max_tokens, info.context_length)
    usable = [cut for example in examples if (cut := example.cut(limit)).is_usable]
    if len(usable) < 2:
        raise InvalidArgumentError(
            "examples", len(usable), "at least 2: give --outputs, or --data with --texts above 0"
        )
    highest = max(int(example.encoded.token_ids.max()) for example in usable)
    if highest >= info.vocab_size:
        raise InvalidArgumentError("token id", highest, f"below {info.vocab_size}, the target's")
    return [usable[int(index)] for index in generator.permutation(len(usable))]


def _split(examples: list[HeadExample]) -> tuple[list[HeadExample], list[HeadExample]]:
    """What is held out, a fiftieth or, of few examples, up to a tenth; and what is learnt."""
    share = max(round(len(examples) * VALIDATION_SHARE), min(8, len(examples) // 10))
    count = max(1, min(MAX_VALIDATION, share))
    return examples[:count], examples[count:]


def _objective(job: HeadJob, states: TargetStates) -> HeadObjective:
    if job.plan.algorithm == "eagle3":
        passes = 7 if job.num_passes is None else job.num_passes
        return Eagle3Objective(Eagle3Loss(passes, _or(job.pass_decay, 0.8)))
    passes = 3 if job.num_passes is None else job.num_passes
    return Eagle2Objective(
        HeadLoss(
            passes,
            _or(job.pass_decay, 0.9),
            job.feature_weight,
            job.noise,
            softcap=states.readout.softcap,
        )
    )


def _or(given: float | None, usual: float) -> float:
    return usual if given is None else given


def _run(job: HeadJob) -> HeadRun:
    return HeadRun(
        num_steps=job.num_steps,
        tokens_per_pass=job.tokens_per_pass,
        passes_per_step=job.passes_per_step,
        warmup_steps=job.warmup_steps,
        decay_share=job.decay_share,
        save_every_s=job.save_every_s,
        log_every=job.log_every,
        validate_every=job.validate_every,
        cache_bytes=job.cache_mib << 20,
        seed=job.seed,
        device=job.device,
        dtype=job.dtype,
    )
