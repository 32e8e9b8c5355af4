"""The `arborist trace` command line."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arborist.cli.generate import KNOBS
from arborist.cli.model_settings import model_settings
from arborist.cli.trace.prompts import TracePrompt, parse_prompt_ids, read_prompts
from arborist.core.policy_settings import POLICY_NAMES, check_policy_name

if TYPE_CHECKING:
    from arborist.cli.local import LocalModel
    from arborist.cli.trace.trace_output import TraceOutput
    from arborist.cli.trace.traced_round import TracedRound
    from arborist.cli.trace.tracer import TraceOptions
    from arborist.common.config import ArboristConfig

_TREE = "Tree (never changes the output)"
_MODELS = "Models"
_OUTPUT = "Output"


def trace(
    drawing: Annotated[
        Path | None,
        typer.Argument(
            help="Where --draw writes: FILE.svg, or a folder for one file per round.",
        ),
    ] = None,
    prompt_ids: Annotated[str | None, typer.Option(help="Token ids to continue: 1,2,3.")] = None,
    prompts_file: Annotated[
        Path | None, typer.Option(help='JSON lines {"id", "prompt_ids"}.')
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens per output; unset = as configured (256).")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Do not end at end-of-sequence tokens.")
    ] = False,
    depth: Annotated[
        int | None, typer.Option(help="Levels below the root, in [1, 16].", rich_help_panel=_TREE)
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Frontier width, children per node, in [1, 32].", rich_help_panel=_TREE),
    ] = None,
    num_draft_tokens: Annotated[
        int | None,
        typer.Option(help="Drafted nodes verified per round, in [1, 256].", rich_help_panel=_TREE),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help=f"One of {', '.join(POLICY_NAMES)}.", rich_help_panel=_TREE),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Target: folder or hub name; unset = the embedded pair.", rich_help_panel=_MODELS
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            help="EAGLE head of any format, or a language model: folder or hub name; "
            "unset = the embedded pair.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu (default), or cuda:N.", rich_help_panel=_MODELS)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="fp32 (default), bf16 or fp16.", rich_help_panel=_MODELS)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file; flags and environment win over it.", rich_help_panel=_MODELS),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File for the lines; unset = stdout.", rich_help_panel=_OUTPUT),
    ] = None,
    draw: Annotated[
        bool,
        typer.Option(
            "--draw",
            help="Draw every round as SVG, beside --out unless DRAWING says where.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
) -> None:
    """Decode prompts greedily in this process and write every round: one line of JSON each."""
    if drawing is not None and not draw:
        raise typer.BadParameter(f"{drawing} has no effect without --draw")
    if policy is not None:
        check_policy_name(policy)
    prompts = _prompts(prompt_ids, prompts_file)
    settings = model_settings(target, draft, device, dtype, config)

    from arborist.common.threads_config import apply_thread_environment

    # Before torch is imported, which the engines do.
    apply_thread_environment(settings.target.num_threads)
    from arborist.cli.trace.tracer import TraceOptions
    from arborist.orchestrator.generation import SpeculationOptions

    tree = SpeculationOptions(True, depth, top_k, num_draft_tokens, policy)
    options = TraceOptions(max_tokens, ignore_eos, tree)
    _run(settings, prompts, options, out, draw, drawing)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("trace", epilog=KNOBS)(trace)


def _prompts(prompt_ids: str | None, prompts_file: Path | None) -> list[TracePrompt]:
    if prompt_ids is not None and prompts_file is None:
        return [parse_prompt_ids(prompt_ids)]
    if prompts_file is not None and prompt_ids is None:
        return read_prompts(prompts_file)
    raise typer.BadParameter("give exactly one of --prompt-ids, --prompts-file")


def _run(
    settings: ArboristConfig,
    prompts: Sequence[TracePrompt],
    options: TraceOptions,
    out: Path | None,
    draw: bool,
    drawing: Path | None,
) -> None:
    from arborist.cli.local import LocalModel
    from arborist.cli.servable_draft import with_servable_draft
    from arborist.cli.trace.drawn_files import DrawnFiles
    from arborist.cli.trace.token_labels import TokenLabels
    from arborist.cli.trace.trace_output import TraceOutput

    place = (drawing or _beside(out)) if draw else None
    # Both are opened before the models are loaded, which may take minutes.
    with TraceOutput(out) as output:
        files = DrawnFiles(place) if place is not None else None
        settings = with_servable_draft(settings, say=partial(typer.echo, err=True))
        model = LocalModel.load(settings, want_node_tokens=True)
        drawn = _trace_all(model, prompts, options, output, keep=files is not None)
    if files is not None:
        files.write(drawn, TokenLabels(model.tokenizer).label)
        typer.echo(f"drawn: {files.path}", err=True)


def _beside(out: Path | None) -> Path:
    """Returns the drawing's name when none is given: that of the trace, but .svg."""
    beside = Path("trace.svg") if out is None else out.with_suffix(".svg")
    if beside == out:
        raise typer.BadParameter(f"--draw would overwrite --out {out}: name the drawing")
    return beside


def _trace_all(
    model: LocalModel,
    prompts: Sequence[TracePrompt],
    options: TraceOptions,
    output: TraceOutput,
    *,
    keep: bool,
) -> list[list[TracedRound]]:
    """Writes every round of every prompt as it comes, then one line of figures on stderr.

    Returns:
        The rounds of each prompt if they are to be kept.
    """
    from arborist.cli.trace.tracer import trace as trace_prompt

    kept: list[list[TracedRound]] = []
    num_rounds = num_accepted = 0
    for prompt in prompts:
        rounds: list[TracedRound] = []

        def take(one: TracedRound, rounds: list[TracedRound] = rounds) -> None:
            output.write(one.line())
            if keep:
                rounds.append(one)

        speculation = trace_prompt(model, prompt, options, take).summary.speculation
        num_rounds += speculation.rounds
        num_accepted += speculation.accepted_tokens
        kept.append(rounds)
    tau = 1 + num_accepted / num_rounds if num_rounds else 0.0
    typer.echo(f"{len(prompts)} prompts rounds={num_rounds} tau={tau:.2f}", err=True)
    return kept
