"""Training commands."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from arborist.core.errors import ArboristError

_HEAD = "Head"
_MACHINE = "Machine"
_PROGRESS = "Progress"


def _pairs(text: str, option: str) -> list[tuple[str, float]]:
    pairs = []
    for item in text.split(","):
        name, separator, value = item.partition("=")
        try:
            pairs.append((name.strip(), float(value) if separator else 1.0))
        except ValueError:
            raise typer.BadParameter(f"{option}: `{item}` is not NAME=NUMBER") from None
    return pairs


def _indices(text: str, option: str) -> list[int]:
    try:
        return [int(item) for item in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{option}: `{text}` is not a list of numbers") from None


def train_target(
    data: Annotated[Path, typer.Argument(help="Folder with train/ and val/ (gzip JSON lines).")],
    out: Annotated[Path, typer.Option(help="Run folder; an unfinished run in it is resumed.")],
    mix: Annotated[str, typer.Option(help="Token shares by file: name=share,name=share.")],
    steps: Annotated[int, typer.Option(help="Updates in all.")],
    init: Annotated[Path | None, typer.Option(help="Warm start: a Hugging Face folder.")] = None,
    keep_layers: Annotated[
        str | None, typer.Option(help="Layers of --init to keep: 0,1,2.")
    ] = None,
    split_layers: Annotated[
        int, typer.Option(help="Cut every layer of --init into this many thin ones.")
    ] = 1,
    split_intermediate: Annotated[
        int | None, typer.Option(help="Neurons of a thin layer (default: none left out).")
    ] = None,
    freeze_layers: Annotated[int, typer.Option(help="Lowest layers that stay as they are.")] = 0,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer folder (default: --init).")
    ] = None,
    layers: Annotated[int, typer.Option(help="Layers, from scratch.")] = 10,
    hidden: Annotated[int, typer.Option(help="Hidden size, from scratch.")] = 384,
    lengths: Annotated[str, typer.Option(help="Sequence lengths by share of steps.")] = "512=1",
    tokens_per_step: Annotated[int, typer.Option(help="Tokens of one update.")] = 8192,
    tokens_per_pass: Annotated[int, typer.Option(help="Tokens of one forward pass.")] = 1024,
    muon_lr: Annotated[float, typer.Option(help="Peak rate of the matrices.")] = 3e-3,
    adam_lr: Annotated[float, typer.Option(help="Peak rate of everything else.")] = 1e-3,
    warmup: Annotated[int, typer.Option(help="Updates until the peak rate.")] = 20,
    decay_share: Annotated[
        float, typer.Option(help="Last share of updates: rate falls to 0.")
    ] = 0.5,
    prompt_weight: Annotated[float, typer.Option(help="Loss weight of prompt tokens.")] = 0.0,
    device: Annotated[str, typer.Option(help="cpu or cuda:N.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="fp32, or bf16 autocast.")] = "fp32",
    threads: Annotated[int, typer.Option(help="CPU threads of one worker.")] = 1,
    workers: Annotated[int, typer.Option(help="Threads that share a batch (1 on a GPU).")] = 2,
    seed: Annotated[int, typer.Option(help="Of data order and initialisation.")] = 0,
    validate_every: Annotated[int, typer.Option(help="Updates between validations.")] = 100,
) -> None:
    """Train a target from scratch or from a warm start, and export it to OUT/export."""
    from arborist.training.target_command import TargetJob, run_target_job

    job = TargetJob(
        data=data,
        out=out,
        mix=dict(_pairs(mix, "--mix")),
        num_steps=steps,
        init=init,
        keep_layers=None if keep_layers is None else _indices(keep_layers, "--keep-layers"),
        split_layers=split_layers,
        split_intermediate=split_intermediate,
        freeze_layers=freeze_layers,
        tokenizer=tokenizer,
        num_layers=layers,
        hidden_size=hidden,
        lengths=tuple((int(name), share) for name, share in _pairs(lengths, "--lengths")),
        tokens_per_step=tokens_per_step,
        tokens_per_pass=tokens_per_pass,
        muon_lr=muon_lr,
        adam_lr=adam_lr,
        warmup_steps=warmup,
        decay_share=decay_share,
        prompt_weight=prompt_weight,
        device=device,
        dtype=dtype,
        num_threads=threads,
        num_workers=workers,
        seed=seed,
        validate_every=validate_every,
    )
    _reporting("train-target", lambda: run_target_job(job))


def train_head(
    target: Annotated[str, typer.Argument(help="Folder or hub name of the target.")],
    out: Annotated[Path, typer.Option(help="Run folder; an unfinished run in it is resumed.")],
    steps: Annotated[int, typer.Option(help="Updates in all.")],
    algorithm: Annotated[
        str, typer.Option("--algorithm", "--head", help="eagle2 or eagle3.", rich_help_panel=_HEAD)
    ] = "eagle2",
    outputs: Annotated[
        list[Path] | None, typer.Option(help="Own outputs from make-outputs; repeatable.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of gzip JSON lines.")] = None,
    mix: Annotated[str | None, typer.Option(help="Share of --texts by file: name=share.")] = None,
    texts: Annotated[int, typer.Option(help="Records of --data to learn from.")] = 0,
    init: Annotated[
        Path | None, typer.Option(help="Warm start: a head's folder.", rich_help_panel=_HEAD)
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(help="Query heads (default: as the target).", rich_help_panel=_HEAD),
    ] = None,
    kv_heads: Annotated[
        int | None,
        typer.Option(help="Key and value heads (default: as the target).", rich_help_panel=_HEAD),
    ] = None,
    intermediate: Annotated[
        int | None,
        typer.Option(help="Width of the MLP (default: as the target).", rich_help_panel=_HEAD),
    ] = None,
    feature_layers: Annotated[
        str | None,
        typer.Option(
            help="eagle3: layers whose inputs it is fed (default: 2,L/2,L-3).",
            rich_help_panel=_HEAD,
        ),
    ] = None,
    draft_vocab_size: Annotated[
        int | None,
        typer.Option(
            help="eagle3: draft the most frequent ids only (default: all).", rich_help_panel=_HEAD
        ),
    ] = None,
    passes: Annotated[
        int | None, typer.Option(help="Unrolled passes (default: 3, eagle3 7).")
    ] = None,
    pass_decay: Annotated[
        float | None,
        typer.Option(help="Weight of each pass over the last (default: 0.9, eagle3 0.8)."),
    ] = None,
    feature_weight: Annotated[
        float, typer.Option(help="eagle2: weight of SmoothL1 on features.")
    ] = 0.2,
    noise: Annotated[float, typer.Option(help="eagle2: uniform noise on true features, +-.")] = 0.1,
    max_tokens: Annotated[int, typer.Option(help="Longest sequence; the rest is cut.")] = 512,
    tokens_per_pass: Annotated[int, typer.Option(help="Tokens of one forward pass.")] = 1024,
    passes_per_step: Annotated[
        int, typer.Option(help="Forward passes of one update (gradient accumulation).")
    ] = 4,
    muon_lr: Annotated[float, typer.Option(help="Peak rate of the matrices.")] = 3e-3,
    adam_lr: Annotated[float, typer.Option(help="Peak rate of everything else.")] = 1e-3,
    warmup: Annotated[int, typer.Option(help="Updates until the peak rate.")] = 20,
    decay_share: Annotated[
        float, typer.Option(help="Last share of updates: rate falls to 0.")
    ] = 0.5,
    device: Annotated[str, typer.Option(help="cpu or cuda:N.", rich_help_panel=_MACHINE)] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="fp32, or bf16 autocast.", rich_help_panel=_MACHINE)
    ] = "fp32",
    target_dtype: Annotated[
        str, typer.Option(help="Of the target: fp32, bf16 or fp16.", rich_help_panel=_MACHINE)
    ] = "fp32",
    threads: Annotated[
        int, typer.Option(help="CPU threads of one worker.", rich_help_panel=_MACHINE)
    ] = 1,
    workers: Annotated[
        int,
        typer.Option(help="Threads that share a batch (1 on a GPU).", rich_help_panel=_MACHINE),
    ] = 2,
    cache_mib: Annotated[
        int,
        typer.Option(
            help="MiB of the target's states to remember; the rest is computed every epoch.",
            rich_help_panel=_MACHINE,
        ),
    ] = 4096,
    seed: Annotated[int, typer.Option(help="Of data order and initialisation.")] = 0,
    save_every: Annotated[
        float, typer.Option(min=0, help="Seconds between states.", rich_help_panel=_PROGRESS)
    ] = 180.0,
    log_every: Annotated[
        int, typer.Option(help="Updates between lines of the log.", rich_help_panel=_PROGRESS)
    ] = 10,
    validate_every: Annotated[
        int, typer.Option(help="Updates between validations.", rich_help_panel=_PROGRESS)
    ] = 100,
    tau_prompts: Annotated[
        int,
        typer.Option(
            help="Held-out prompts to decode at a validation, at most 64; 0 = no tau.",
            rich_help_panel=_PROGRESS,
        ),
    ] = 16,
    tau_tokens: Annotated[
        int, typer.Option(help="Most tokens of each output.", rich_help_panel=_PROGRESS)
    ] = 64,
    tau_seconds: Annotated[
        float, typer.Option(help="Seconds all of them take at most.", rich_help_panel=_PROGRESS)
    ] = 20.0,
) -> None:
    """Train an EAGLE-2 or EAGLE-3 head for any target, and export it to OUT/export."""

    def run() -> None:
        from transformers.utils.logging import disable_progress_bar

        from arborist.cli.train_acceptance import HeadMeter
        from arborist.training.head_command import HeadJob, run_head_job
        from arborist.training.head_shape import HeadShape
        from arborist.training.new_head import HeadPlan

        disable_progress_bar()
        layers = None
        if feature_layers is not None:
            layers = tuple(_indices(feature_layers, "--feature-layers"))
        job = HeadJob(
            target=target,
            out=out,
            num_steps=steps,
            plan=HeadPlan(
                algorithm=algorithm,
                init=init,
                shape=HeadShape(heads, kv_heads, intermediate),
                feature_layers=layers,
                draft_vocab_size=draft_vocab_size,
            ),
            outputs=tuple(outputs or ()),
            data=data,
            mix=None if mix is None else dict(_pairs(mix, "--mix")),
            num_texts=texts,
            num_passes=passes,
            pass_decay=pass_decay,
            feature_weight=feature_weight,
            noise=noise,
            max_tokens=max_tokens,
            tokens_per_pass=tokens_per_pass,
            passes_per_step=passes_per_step,
            muon_lr=muon_lr,
            adam_lr=adam_lr,
            warmup_steps=warmup,
            decay_share=decay_share,
            device=device,
            dtype=dtype,
            target_dtype=target_dtype,
            num_threads=threads,
            num_workers=workers,
            cache_mib=cache_mib,
            seed=seed,
            save_every_s=save_every,
            log_every=log_every,
            validate_every=validate_every,
            tau_prompts=tau_prompts,
        )
        measure = partial(HeadMeter, max_tokens=tau_tokens, limit_s=tau_seconds)
        run_head_job(job, measure, typer.echo)

    _reporting("train-head", run)


def make_outputs(
    target: Annotated[Path, typer.Argument(help="Folder of the target.")],
    data: Annotated[Path, typer.Argument(help="Folder of gzip JSON lines with the prompts.")],
    out: Annotated[Path, typer.Option(help="File to write (.jsonl.gz).")],
    mix: Annotated[str, typer.Option(help="Share of the prompts by file: name=share.")],
    prompts: Annotated[int, typer.Option(help="Prompts in all.")] = 2000,
    max_new_tokens: Annotated[int, typer.Option(help="Limit of an output.")] = 128,
    max_prompt_tokens: Annotated[int, typer.Option(help="Longer prompts are passed over.")] = 512,
    batch_size: Annotated[int, typer.Option(help="Prompts decoded together.")] = 64,
    keep_loops: Annotated[bool, typer.Option(help="Write looping outputs too.")] = False,
    corrections: Annotated[
        Path | None, typer.Option(help="Also write outputs cut where they should end, to train on.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda:N.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the choice of prompts.")] = 0,
) -> None:
    """Write a target's own greedy outputs, without the looping ones, to train its head on."""
    from arborist.training.outputs_command import OutputsJob, run_outputs_job

    job = OutputsJob(
        target=target,
        data=data,
        out=out,
        mix=dict(_pairs(mix, "--mix")),
        num_prompts=prompts,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        batch_size=batch_size,
        keep_loops=keep_loops,
        corrections=corrections,
        device=device,
        num_threads=threads,
        seed=seed,
    )
    _reporting("make-outputs", lambda: typer.echo(run_outputs_job(job)))


def make_instructions(
    data: Annotated[Path, typer.Argument(help="Folder of training files to derive records from.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    templates: Annotated[int, typer.Option(help="Draws from the templates.")] = 20000,
    summaries: Annotated[int, typer.Option(help="Lead summaries of plain text.")] = 4000,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
) -> None:
    """Write the project's own instruction records."""
    from arborist.training.instructions.build import build_instructions

    _reporting(
        "make-instructions",
        lambda: typer.echo(build_instructions(data, out, templates, summaries, seed)),
    )


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _reporting(command: str, run: Callable[[], None]) -> None:
    # A background job starts with SIGINT ignored; both signals must save the run and end it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        run()
    except KeyboardInterrupt:
        typer.echo(f"{command}: stopped; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    except (ArboristError, ValueError, OSError) as error:
        typer.echo(f"{command}: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None


def register(app: typer.Typer) -> None:
    """Add the training commands to an application."""
    app.command("train-target")(train_target)
    app.command("train-head")(train_head)
    app.command("make-outputs")(make_outputs)
    app.command("make-instructions")(make_instructions)
