"""`arborist demo`: a whole deployment on Ray, three prompts, and down again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from arborist.cli.serve import LOCAL_CONFIG, ready_line
from arborist.cli.stop_signals import StopSignals
from arborist.common.api_key import new_api_key
from arborist.common.config import ArboristConfig, load_config
from arborist.common.logging_setup import configure_logging
from arborist.common.shipped import shipped_path
from arborist.orchestrator.ray_config import apply_ray_environment

_SHOWN_ROUNDS = 6


def demo(
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file; unset = the one for one machine.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Target: folder or hub name; unset = the embedded pair.")
    ] = None,
    draft_model: Annotated[
        str | None, typer.Option(help="EAGLE head: folder or hub name; unset = the embedded pair.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16, for both workers.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Most tokens per output.")] = 96,
    depth: Annotated[int | None, typer.Option(help="Levels below the root.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Frontier width, children per node.")] = None,
    num_draft_tokens: Annotated[
        int | None, typer.Option(help="Drafted nodes verified per round, root excluded.")
    ] = None,
    trace_file: Annotated[
        Path | None, typer.Option(help="Append spans of all processes here, JSON lines.")
    ] = None,
) -> None:
    """Stream three prompts through a deployment on Ray, compare with plain decoding, stop."""
    api_key = new_api_key()
    settings = load_config(
        config or shipped_path(LOCAL_CONFIG),
        {
            # Beside whatever else runs here or on the cluster that is joined.
            "controller.http_port": 0,
            "controller.grpc_port": 0,
            "controller.metrics_port": 0,
            # Whatever keys are configured, nobody tells them to the demo.
            "controller.api_keys": api_key,
            "target.metrics_port": 0,
            "draft.metrics_port": 0,
            "ray.namespace": "arborist-demo",
            "ray.app_name": "arborist-demo",
            "ray.route_prefix": "/arborist-demo",
            "target.model": model,
            "target.dtype": dtype,
            "draft.model": draft_model,
            "draft.dtype": dtype,
            "speculation.depth": depth,
            "speculation.top_k": top_k,
            "speculation.num_draft_tokens": num_draft_tokens,
            "telemetry.trace_file": trace_file,
        },
    )
    configure_logging(settings.telemetry, "demo")
    apply_ray_environment(settings.ray.address)
    identical, summary = _run(settings, max_tokens, api_key)
    typer.echo(summary)
    if not identical:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("demo")(demo)


def _run(settings: ArboristConfig, max_tokens: int, api_key: str) -> tuple[bool, str]:
    # After the environment is set: this imports Ray.
    from rich.console import Console

    from arborist.cli.demo_comparison import compare
    from arborist.cli.round_table import round_table
    from arborist.client import Client
    from arborist.orchestrator.app_cluster import RayCluster

    console = Console(highlight=False)
    signals = StopSignals()
    cluster = RayCluster(settings, show_logs=False, on_connected=signals.take_over)
    began_s = time.monotonic()
    try:
        typer.echo("starting Ray, a controller, a draft worker and a target worker …")
        deployment = cluster.start()
        typer.echo(ready_line(settings, deployment))
        typer.echo(f"ready after {time.monotonic() - began_s:.1f} s")
        with Client(deployment.grpc_address, api_key=api_key) as client:
            comparison = compare(
                client,
                max_tokens,
                on_prompt=lambda number, text: console.print(
                    f"\n\n[{number}] {text}\n", markup=False, style="bold"
                ),
                on_round=lambda one: console.print(one.text, end="", markup=False, soft_wrap=True),
            )
        console.print("\n")
        console.print(round_table([one.drafted for one in comparison.pairs], _SHOWN_ROUNDS))
    finally:
        signals.ignore()
        stopping_s = time.monotonic()
        cluster.stop()
    typer.echo(f"stopped after {time.monotonic() - stopping_s:.1f} s")
    identical = comparison.num_identical == len(comparison.pairs)
    return identical, comparison.summary()
