"""What `train-head` and `make-outputs` do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from arborist.draft.checkpoint import load_head, save_head
from arborist.draft.head import EagleHead, HeadConfig
from arborist.training.head_loss import HeadLoss
from arborist.training.head_trainer import HeadRun, HeadTrainer
from arborist.training.own_outputs import (
    OwnOutput,
    pick_prompts,
    read_own_outputs,
    write_corrections,
    write_own_outputs,
)
from arborist.training.records import (
    EncodedRecord,
    Record,
    data_files,
    encode_record,
    read_records,
)
from arborist.training.replicas import Replicas
from arborist.training.target_model import make_optimizer

VALIDATION_SHARE = 0.01


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


@dataclass(frozen=True)
class HeadJob:
    """Everything `train-head` was told."""

    target: Path
    out: Path
    num_steps: int
    outputs: tuple[Path, ...] = ()
    data: Path | None = None
    mix: dict[str, float] | None = None
    num_texts: int = 0
    init: Path | None = None
    num_passes: int = 3
    pass_decay: float = 0.9
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
    num_threads: int = 1
    num_workers: int = 2
    seed: int = 0
    validate_every: int = 100


def run_outputs_job(job: OutputsJob) -> dict[str, int]:
    """Write the target's own greedy outputs; returns the counts.

    Raises:
        ValueError: a setting that does not fit, in one line.
    """
    torch.set_num_threads(job.num_threads)
    tokenizer = AutoTokenizer.from_pretrained(job.target)
    model = _target(job.target, job.device)
    prompts = pick_prompts(
        _read(job.data, job.mix),
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


def run_head_job(job: HeadJob) -> None:
    """Train (or go on training) a head and write it to ``out/export``.

    Raises:
        ValueError: a setting that does not fit, in one line.
    """
    torch.set_num_threads(job.num_threads)
    torch.manual_seed(job.seed)
    if job.dtype not in ("fp32", "bf16"):
        raise ValueError(f"dtype `{job.dtype}`: fp32 or bf16")
    tokenizer = AutoTokenizer.from_pretrained(job.target)
    target = _target(job.target, job.device)
    examples = _examples(job, tokenizer)
    if len(examples) < 2:
        raise ValueError("no examples: give --outputs, or --data with --texts above 0")
    held = max(1, min(64, int(len(examples) * VALIDATION_SHARE)))
    head = _head(job, target).to(job.device)
    replicas = Replicas(head, job.num_workers)
    trainer = HeadTrainer(
        head,
        target,
        make_optimizer(head, job.muon_lr, job.adam_lr, replicas=replicas),
        examples[held:],
        examples[:held],
        HeadLoss(job.num_passes, job.pass_decay, job.feature_weight, job.noise),
        HeadRun(
            num_steps=job.num_steps,
            tokens_per_pass=job.tokens_per_pass,
            passes_per_step=job.passes_per_step,
            warmup_steps=job.warmup_steps,
            decay_share=job.decay_share,
            validate_every=job.validate_every,
            seed=job.seed,
            device=job.device,
            dtype=job.dtype,
        ),
        job.out,
        replicas,
    )
    trainer.train()
    trainer.validate()
    save_head(job.out / "export", head)


def head_config_of(target: LlamaForCausalLM) -> HeadConfig:
    """A one-layer head as wide as the target's states, whatever the width of its layers.

    Of a target with the usual proportions it is one more layer; of one with thin layers (too few
    heads to fill its states) it gets the proportions of a usual layer, since it has no second one.
    """
    config = target.config
    head_dim = target.model.layers[0].self_attn.head_dim
    num_heads = max(config.num_attention_heads, config.hidden_size // head_dim)
    is_thin = num_heads > config.num_attention_heads
    usual_width = -(-config.hidden_size * 8 // 3 // 128) * 128
    return HeadConfig(
        hidden_size=config.hidden_size,
        intermediate_size=usual_width if is_thin else config.intermediate_size,
        num_attention_heads=num_heads,
        num_key_value_heads=max(1, num_heads // 3) if is_thin else config.num_key_value_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position_embeddings,
    )


def example_of_output(output: OwnOutput, max_tokens: int) -> EncodedRecord:
    """Prompt and own output as one sequence; only the output's tokens count as labels."""
    ids = np.asarray([*output.prompt_ids, *output.output_ids], dtype=np.int64)
    weights = np.zeros(len(ids), dtype=np.float32)
    weights[len(output.prompt_ids) :] = 1.0
    # The first output token is the target's own; the head only ever predicts what follows it.
    weights[len(output.prompt_ids)] = 0.0
    return EncodedRecord(ids[:max_tokens], weights[:max_tokens])


def _examples(job: HeadJob, tokenizer: PreTrainedTokenizerFast) -> list[EncodedRecord]:
    examples = [
        example_of_output(output, job.max_tokens)
        for path in job.outputs
        for output in read_own_outputs(path)
    ]
    generator = np.random.default_rng(job.seed)
    if job.data is not None and job.num_texts:
        mix = job.mix or dict.fromkeys(data_files(job.data), 1.0)
        total = sum(mix.values())
        for name, records in _read(job.data, mix).items():
            count = min(len(records), round(job.num_texts * mix[name] / total))
            for index in generator.permutation(len(records))[:count]:
                encoded = encode_record(records[int(index)], tokenizer)
                examples.append(
                    EncodedRecord(
                        encoded.token_ids[: job.max_tokens], encoded.loss_weights[: job.max_tokens]
                    )
                )
    usable = [example for example in examples if float(example.loss_weights[2:].sum()) > 0]
    return [usable[int(index)] for index in generator.permutation(len(usable))]


def _head(job: HeadJob, target: LlamaForCausalLM) -> EagleHead:
    if job.init is None:
        return EagleHead(head_config_of(target))
    head, _ = load_head(job.init)
    if head.config.hidden_size != target.config.hidden_size:
        raise ValueError(
            f"init head has hidden_size {head.config.hidden_size}: "
            f"the target has {target.config.hidden_size}"
        )
    return head


def _target(path: Path, device: str) -> LlamaForCausalLM:
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model.to(device).eval().requires_grad_(False)


def _read(folder: Path, names: dict[str, float]) -> dict[str, list[Record]]:
    files = data_files(folder)
    missing = [name for name in names if name not in files]
    if missing:
        raise ValueError(f"mix: no file `{missing[0]}` in {folder} (there are: {', '.join(files)})")
    return {name: list(read_records(files[name])) for name in names}
