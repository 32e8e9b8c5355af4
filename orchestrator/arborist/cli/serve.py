"""`arborist serve`: controller, draft and target on Ray, until Ctrl-C."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arborist.cli.servable_draft import with_servable_draft
from arborist.cli.stop_signals import StopSignals
from arborist.common.api_key import read_key_file
from arborist.common.config import ArboristConfig, load_config
from arborist.common.logging_setup import configure_logging
from arborist.common.shipped import shipped_path
from arborist.common.tree_file import read_tree_file
from arborist.core.policy_settings import POLICY_NAMES
from arborist.orchestrator.ray_config import apply_ray_environment

if TYPE_CHECKING:
    from arborist.orchestrator.app_cluster import Deployment

LOCAL_CONFIG = "deploy/ray/local.yaml"
KNOBS = (
    "Names elsewhere: SGLang's --speculative-num-draft-tokens is our num_draft_tokens + 1, its "
    "--speculative-num-steps our depth, its --speculative-eagle-topk our top_k; the official "
    "code's total_token is our num_draft_tokens + 1, its depth our depth - 1."
)


def serve(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="YAML file, which flags and environment win over; unset = deploy/ray/local.yaml.",
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address of both APIs (127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port (8000); 0 = any.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port (9000); 0 = any.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Target: folder or hub name; unset = the embedded pair.")
    ] = None,
    draft_model: Annotated[
        str | None,
        typer.Option(
            "--draft",
            "--draft-model",
            help="EAGLE head of any format, or a language model: folder or hub name; "
            "unset = the embedded pair.",
        ),
    ] = None,
    draft_revision: Annotated[str | None, typer.Option(help="Revision of a hub draft.")] = None,
    name: Annotated[str | None, typer.Option(help="Served name.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16, for both workers.")
    ] = None,
    speculation: Annotated[
        bool | None, typer.Option("--speculation/--no-speculation", help="Draft by default.")
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Levels below the root.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Frontier width, children per node.")] = None,
    num_draft_tokens: Annotated[
        int | None, typer.Option(help="Drafted nodes verified per round, root excluded.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help=f"How trees are made: {', '.join(POLICY_NAMES)}.")
    ] = None,
    tree_file: Annotated[
        Path | None, typer.Option(help="Tree of eagle1_static: JSON list of paths.")
    ] = None,
    draft_calls: Annotated[
        str | None,
        typer.Option(help="Commands to the draft worker: level = one a level, tree = one a round."),
    ] = None,
    api_keys_file: Annotated[
        Path | None,
        typer.Option(help="Let in only who has a key of this file (`arborist create-key`)."),
    ] = None,
    trace_file: Annotated[
        Path | None, typer.Option(help="Append spans of all processes here, JSON lines.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="human or json.")] = None,
) -> None:
    """Serve a model: starts Ray here, or joins RAY_ADDRESS."""
    flags = {
        "controller.http_host": host,
        "controller.grpc_host": host,
        "controller.http_port": port,
        "controller.grpc_port": grpc_port,
        "target.model": model,
        "target.name": name,
        "target.dtype": dtype,
        "draft.model": draft_model,
        "draft.revision": draft_revision,
        "draft.dtype": dtype,
        "speculation.enabled": speculation,
        "speculation.depth": depth,
        "speculation.top_k": top_k,
        "speculation.num_draft_tokens": num_draft_tokens,
        "speculation.policy": policy,
        "speculation.tree_file": tree_file,
        "speculation.draft_calls": draft_calls,
        "controller.api_keys_file": api_keys_file,
        "telemetry.trace_file": trace_file,
        "telemetry.log_level": log_level,
        "telemetry.log_format": log_format,
    }
    settings = load_config(config or shipped_path(LOCAL_CONFIG), flags)
    if settings.speculation.tree_file is not None:
        read_tree_file(settings.speculation.tree_file)  # What is wrong with it is said at once.
    if settings.controller.api_keys_file is not None:
        read_key_file(settings.controller.api_keys_file)
    configure_logging(settings.telemetry, "serve")
    settings = with_servable_draft(settings)
    apply_ray_environment(settings.ray.address)
    # After the environment is set: this imports Ray.
    from arborist.orchestrator.app_cluster import RayCluster

    signals = StopSignals()
    cluster = RayCluster(settings, show_logs=True, on_connected=signals.take_over)
    try:
        deployment = cluster.start()
        typer.echo(ready_line(settings, deployment))
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        typer.echo("stopping: running requests may finish", err=True)
    finally:
        signals.ignore()
        cluster.stop()


def ready_line(settings: ArboristConfig, deployment: Deployment) -> str:
    """Returns the line that says what is served and where.

    Args:
        settings: As given.
        deployment: What came up.
    """
    target = deployment.targets[0] if deployment.targets else None
    model = target.model if target else settings.target.served_name()
    drafts = {one.model for one in deployment.drafts}
    parts = [
        f"ready: http://{deployment.http_address}",
        f"grpc://{deployment.grpc_address}",
        f"model={model}",
        f"draft={','.join(sorted(drafts)) or 'none'}",
    ]
    if target is not None and target.context_length:
        total = sum(one.kv_capacity_tokens for one in deployment.targets)
        per_target = target.kv_capacity_tokens // target.context_length
        parts.append(
            f"kv={total} tokens (fits {per_target * len(deployment.targets)} sessions of "
            f"{target.context_length} tokens)"
        )
    return " ".join(parts)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("serve", epilog=KNOBS)(serve)
