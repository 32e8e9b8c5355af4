"""The `arborist bench` command line."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import uvloop

from arborist.cli.dtype_names import DTYPE_NAMES
from arborist.cli.machine import machine_facts
from arborist.core.errors import InvalidArgumentError
from arborist.core.policy_settings import POLICY_NAMES
from arborist.core.shape import TreeShape

if TYPE_CHECKING:
    from arborist.cli.bench.contest import Results

SCHEMA = "arborist.bench/1"
# The configuration's own names are understood too.
DTYPES = DTYPE_NAMES | {name: name for name in DTYPE_NAMES.values()}


def bench(
    prompts: Annotated[Path, typer.Option(help="JSON lines with `turns`, gzip or not.")],
    modes: Annotated[
        str,
        typer.Option(
            help="Contestants, with commas: hf_generate, plain, monolith, frspec, "
            "draft_lm_chain, draft_lm_tree and every policy "
            f"({', '.join(POLICY_NAMES)})."
        ),
    ] = "hf_generate,plain,monolith,eagle2",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Levels below the root (SGLang num-steps).")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Frontier width and children per node (eagle-topk).")
    ] = None,
    num_draft_tokens: Annotated[
        int | None,
        typer.Option(help="Drafted nodes per round (SGLang's or EAGLE's number minus 1)."),
    ] = None,
    tree_file: Annotated[
        Path | None, typer.Option(help="Tree of eagle1_static: JSON list of paths.")
    ] = None,
    min_frontier_logprob: Annotated[
        float | None, typer.Option(help="Where dynamic_depth stops, in [-100, 0].")
    ] = None,
    draft_calls: Annotated[
        str | None,
        typer.Option(help="Commands to the draft worker: level = one a level, tree = one a round."),
    ] = None,
    vocabulary_file: Annotated[
        Path | None, typer.Option(help="Draft these ids only: JSON list, most frequent first.")
    ] = None,
    vocabulary_size: Annotated[
        int | None, typer.Option(min=1, help="Take so many ids of --vocabulary-file.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Most tokens per output.")] = 128,
    temperature: Annotated[
        float, typer.Option(help="0 = greedy, to 100; hf_generate is greedy only.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of every output, 64 bits.")] = 0,
    noise_aware: Annotated[
        bool | None,
        typer.Option("--noise-aware/--no-noise-aware", help="Tell the draft the target's noise."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    repetitions: Annotated[int, typer.Option(min=1, max=1000, help="Interleaved.")] = 5,
    num_prompts: Annotated[
        int | None, typer.Option(min=1, help="Take this many questions, spread evenly.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Target folder; unset = embedded.")] = None,
    draft: Annotated[
        str | None, typer.Option(help="Head folder, of any format; unset = embedded.")
    ] = None,
    draft_lm: Annotated[
        str | None,
        typer.Option(help="Language model that draft_lm_chain and draft_lm_tree draft with."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda:N.")] = "cpu",
    num_threads: Annotated[int, typer.Option(min=0, help="0 = every core.")] = 0,
    tracing: Annotated[bool, typer.Option(help="Trace every round, as in production.")] = True,
    trace_file: Annotated[Path | None, typer.Option(help="Keep the spans in this file.")] = None,
) -> None:
    """Measure all modes side by side on the same prompts, with workers of its own; no Ray."""
    from arborist.common.threads_config import apply_thread_environment

    apply_thread_environment(num_threads)
    from arborist.cli.bench.contest import MODES, BenchSettings
    from arborist.cli.bench.questions import read_questions
    from arborist.cli.servable_draft import with_servable_draft
    from arborist.common.config import load_config
    from arborist.common.tree_file import read_tree_file
    from arborist.core.sampling import SamplingParams

    chosen = tuple(name.strip() for name in modes.split(",") if name.strip())
    for name in chosen:
        if name not in MODES:
            raise InvalidArgumentError("--modes", name, f"among {', '.join(MODES)}")
    if not chosen or len(set(chosen)) != len(chosen):
        raise InvalidArgumentError("--modes", modes, "one or more distinct modes")
    if temperature and "hf_generate" in chosen:
        raise InvalidArgumentError("--modes", modes, "without hf_generate, which is greedy only")
    if dtype not in DTYPES:
        raise InvalidArgumentError("--dtype", dtype, "fp32, bf16 or fp16")
    config = load_config(
        None,
        {
            "target.model": target,
            "draft.model": draft,
            "draft.target_model": target,
            "speculation.tree_file": tree_file,
            "speculation.min_frontier_logprob": min_frontier_logprob,
            "speculation.draft_calls": draft_calls,
            "speculation.noise_aware": noise_aware,
        },
    )
    config = with_servable_draft(config, say=partial(typer.echo, err=True))
    chosen_tree = config.speculation.tree_file
    default = config.speculation.shape()
    settings = BenchSettings(
        target=config.target.resolved_model(),
        draft=config.draft.resolved_model(),
        modes=chosen,
        shape=TreeShape(
            default.depth if depth is None else depth,
            default.top_k if top_k is None else top_k,
            default.num_draft_tokens if num_draft_tokens is None else num_draft_tokens,
        ),
        max_tokens=max_tokens,
        dtype=DTYPES[dtype],
        device=device,
        num_threads=num_threads,
        repetitions=repetitions,
        tracing=tracing,
        trace_file=trace_file,
        tree_paths=None if chosen_tree is None else read_tree_file(chosen_tree),
        min_frontier_logprob=config.speculation.min_frontier_logprob,
        draft_calls=config.speculation.draft_calls,
        sampling=SamplingParams(temperature=temperature, seed=seed),
        noise_aware=config.speculation.noise_aware,
        vocabulary_file=vocabulary_file,
        vocabulary_size=vocabulary_size,
        draft_lm=draft_lm,
    )
    questions = read_questions(prompts, num_prompts)
    report = _measure(settings, questions)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _print(report)


def _measure(settings: Any, questions: Any) -> dict[str, Any]:
    from arborist.cli.bench.flips import find_flips
    from arborist.cli.bench.margins import measure_margins
    from arborist.cli.bench.report import mode_figures, ratios, repetition_speeds
    from arborist.orchestrator.api.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(settings.target)
    if tokenizer is None:
        raise InvalidArgumentError("--target", settings.target, "a folder with a tokenizer")
    results = uvloop.run(_contest(settings, questions, tokenizer))
    outputs = results.outputs
    plain = outputs["plain"][-1] if "plain" in outputs else None
    margins = {}
    if plain is not None:
        flips = [flip for reps in outputs.values() for flip in find_flips(reps[-1], plain)]
        places = [flip.place for flip in flips]
        margins = measure_margins(settings, results.prompts, plain, places)
    return {
        "schema": SCHEMA,
        "machine": machine_facts(),
        "settings": _settings(settings)
        | {"num_prompts": len(results.prompts), "num_skipped": results.num_skipped},
        "modes": {
            name: mode_figures(repetitions, plain, tokenizer.decode, margins)
            for name, repetitions in outputs.items()
        },
        "ratios": ratios({name: repetition_speeds(reps) for name, reps in outputs.items()}),
    }


async def _contest(settings: Any, questions: Any, tokenizer: Any) -> Results:
    from rich.progress import Progress

    from arborist.cli.bench.contest import open_contest

    async with open_contest(settings, tokenizer) as contest:
        with Progress(transient=True) as progress:
            turns = sum(len(question.turns) for question in questions)
            total = turns * len(settings.modes) * settings.repetitions
            task = progress.add_task("bench", total=total)
            return await contest.run(questions, lambda: progress.advance(task))


def _settings(settings: Any) -> dict[str, Any]:
    values: dict[str, Any] = asdict(settings)
    shape, sampling = values.pop("shape"), settings.sampling
    values["sampling"] = {"temperature": sampling.temperature, "seed": sampling.seed}
    values["tree_paths"] = settings.tree_paths and settings.tree_paths.paths
    values["trace_file"] = str(settings.trace_file) if settings.trace_file else None
    ids = settings.vocabulary_file
    values["vocabulary_file"] = ids.name if ids else None
    for name in ("target", "draft", "draft_lm"):
        # The folder's name says enough; paths are nobody's business.
        values[name] = values[name] and Path(values[name]).name
    values.update(shape, modes=list(settings.modes))
    return values


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from arborist.cli.bench.flips import flips_line

    console = Console()
    if not console.is_terminal:
        console = Console(width=190)  # In a log every column counts.
    table = Table(title=_title(report))
    columns: tuple[str, ...] = ("mode", "tokens/s", "quartiles", "tau", "bytes/round", "loops")
    columns = (*columns, "= plain", "nodes", "draft calls", "forwards")
    for column in (*columns, "draft ms", "verify ms", "transport ms", "controller ms", "round ms"):
        table.add_column(column, justify="right", no_wrap=column == "mode")
    for name, row in report["modes"].items():
        times = row["round_ms"] or {}
        equal = row.get("outputs_equal_to_plain")
        table.add_row(
            name,
            f"{row['tokens_per_s']:.1f}",
            "–".join(f"{value:.1f}" for value in row["tokens_per_s_quartiles"]),
            _text(row["tau"]),
            _text(row["bytes_per_round"]),
            f"{row['loop_share']:.0%}",
            "" if equal is None else f"{equal}/{row['prompts']}",
            _text(row["draft_tokens_per_round"]),
            _text(row["draft_calls_per_round"]),
            _text(row["draft_forwards_per_round"]),
            *(
                _text(times.get(key))
                for key in ("draft_compute", "verify_compute", "transport", "controller", "total")
            ),
        )
    console.print(table)
    for name, value in report["ratios"].items():
        console.print(f"{name} = {value:.3f}")
    for name, row in report["modes"].items():
        if "flips" in row and (line := flips_line(name, row)):
            console.print(line)


def _title(report: dict[str, Any]) -> str:
    settings = report["settings"]
    return (
        f"{settings['num_prompts']} prompts, {settings['dtype']}, depth {settings['depth']}, "
        f"top_k {settings['top_k']}, num_draft_tokens {settings['num_draft_tokens']}, "
        f"{report['machine']['cores']} cores, {settings['repetitions']} repetitions"
    )


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("bench")(bench)
