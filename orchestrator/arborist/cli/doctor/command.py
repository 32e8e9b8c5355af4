"""The `arborist doctor` command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arborist.cli.model_settings import model_settings
from arborist.common.threads_config import apply_thread_environment
from arborist.core.errors import MismatchError

if TYPE_CHECKING:
    from arborist.cli.doctor.report import Report
    from arborist.common.config import ArboristConfig

DEFAULT_MAX_TOKENS = 64


def doctor(
    target: Annotated[
        str | None, typer.Option(help="Target: folder or hub name; unset = the embedded pair.")
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            help="EAGLE head of any format: folder or hub name; unset = the embedded one."
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help='JSON lines with "prompt", "messages" or "prompt_ids"; unset = ten of our own.'
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=2, max=1024, help="Most tokens per output.")
    ] = DEFAULT_MAX_TOKENS,
    device: Annotated[str | None, typer.Option(help="cpu (default), or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32 (default), bf16 or fp16.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file; flags and environment win over it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say whether a head fits a target, measure tau, and find out why it is low.

    Ends with 0 when all is well and 1 when something is wrong.
    """
    settings = model_settings(target, draft, device, dtype, config)
    # Before torch is imported, which the engines do.
    apply_thread_environment(settings.target.num_threads)
    report = examine_pair(settings, prompts, max_tokens)
    if as_json:
        typer.echo(json.dumps(report.json(), indent=2))
    else:
        from rich.console import Console

        Console().print(report.table())
        typer.echo(report.verdict)
    if report.findings:
        raise typer.Exit(1)


def examine_pair(settings: ArboristConfig, prompts: Path | None, max_tokens: int) -> Report:
    """Loads a pair and examines it.

    Args:
        settings: Models, device, dtype, tree.
        prompts: File of prompts; None = ten of our own.
        max_tokens: Most tokens per output.
    Raises:
        InvalidArgumentError: There is no such model, or the prompts cannot be used.
    """
    from arborist.cli.doctor.diagnosis import Cause, Finding, diagnose
    from arborist.cli.doctor.examination import examine
    from arborist.cli.doctor.fit import examine_fit
    from arborist.cli.doctor.installation import installation
    from arborist.cli.doctor.patient import Patient
    from arborist.cli.doctor.prompts import read_prompts
    from arborist.cli.doctor.report import Report
    from arborist.cli.servable_draft import with_servable_draft

    asked = read_prompts(prompts) if prompts is not None else None
    installed, fit, measured = installation(), None, None
    findings = [
        Finding(Cause.MISSING_PACKAGE, name, "reinstall arborist with its dependencies")
        for name in installed.missing
    ]
    try:
        patient = Patient.load(with_servable_draft(settings))
    except MismatchError as error:
        advice = "use the head of this target, or the target of this head"
        findings.append(Finding(Cause.UNFIT, error.message, advice))
    else:
        fit = examine_fit(patient.head_files, patient.embedding(), patient.target, patient.draft)
        chosen = asked if asked is not None else patient.own_prompts()
        measured = examine(patient, chosen, max_tokens)
        findings += diagnose(measured)
    return Report(
        installed,
        settings.target.served_name(),
        settings.draft.served_name(),
        f"{settings.target.device}, {settings.target.dtype}",
        fit,
        measured,
        tuple(findings),
    )


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("doctor")(doctor)
