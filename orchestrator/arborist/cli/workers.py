"""`arborist serve-draft` and `arborist serve-target`: one worker, one process, no Ray."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from arborist.cli.servable_draft import with_servable_draft
from arborist.common.config import ArboristConfig, load_config
from arborist.common.logging_setup import configure_logging
from arborist.common.threads_config import apply_thread_environment

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="YAML file; flags and environment win over it.")
]
Revision = Annotated[str | None, typer.Option(help="Revision of a hub model.")]
Device = Annotated[str | None, typer.Option(help="cpu, or cuda:N.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Host = Annotated[str | None, typer.Option(help="Address to bind.")]
MetricsPort = Annotated[int | None, typer.Option(help="Prometheus port; 0 = any, -1 = off.")]
KvCapacity = Annotated[int | None, typer.Option(help="KV positions of all sessions, in tokens.")]
MaxRows = Annotated[int | None, typer.Option(help="Most rows of one forward.")]
MaxSessions = Annotated[int | None, typer.Option(help="Most sessions open at a time.")]
NumThreads = Annotated[int | None, typer.Option(help="Compute threads on CPU; 0 = every core.")]
TraceFile = Annotated[Path | None, typer.Option(help="Append spans to this file, JSON lines.")]
LogLevel = Annotated[str | None, typer.Option(help="debug, info, warning or error.")]
LogFormat = Annotated[str | None, typer.Option(help="human or json.")]


def serve_target(
    config: ConfigOption = None,
    model: Annotated[
        str | None, typer.Option(help="Model folder or hub name; unset = the embedded pair's.")
    ] = None,
    revision: Revision = None,
    name: Annotated[str | None, typer.Option(help="Served name.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    host: Host = None,
    port: Annotated[int | None, typer.Option(help="gRPC port (9102); 0 = any.")] = None,
    metrics_port: MetricsPort = None,
    kv_capacity_tokens: KvCapacity = None,
    max_rows: MaxRows = None,
    max_sessions: MaxSessions = None,
    num_threads: NumThreads = None,
    trace_file: TraceFile = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Serve the target model: verifies draft trees, owns the output."""
    flags = {
        "target.model": model,
        "target.revision": revision,
        "target.name": name,
        "target.device": device,
        "target.dtype": dtype,
        "target.host": host,
        "target.port": port,
        "target.metrics_port": metrics_port,
        "target.kv_capacity_tokens": kv_capacity_tokens,
        "target.max_rows": max_rows,
        "target.max_sessions": max_sessions,
        "target.num_threads": num_threads,
        "telemetry.trace_file": trace_file,
        "telemetry.log_level": log_level,
        "telemetry.log_format": log_format,
    }
    settings = load_config(config, flags)
    _run("target", settings, settings.target.num_threads)


def serve_draft(
    config: ConfigOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Head of any format, or a language model: folder or hub name; "
            "unset = the embedded pair's."
        ),
    ] = None,
    revision: Revision = None,
    target_model: Annotated[
        str | None, typer.Option(help="Target the head belongs to (its embedding and LM head).")
    ] = None,
    target_revision: Annotated[str | None, typer.Option(help="Revision of a hub target.")] = None,
    vocabulary_file: Annotated[
        Path | None, typer.Option(help="Draft these ids only: JSON list, most frequent first.")
    ] = None,
    vocabulary_size: Annotated[
        int | None, typer.Option(help="Take so many ids of --vocabulary-file.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    host: Host = None,
    port: Annotated[int | None, typer.Option(help="gRPC port (9101); 0 = any.")] = None,
    metrics_port: MetricsPort = None,
    kv_capacity_tokens: KvCapacity = None,
    max_rows: MaxRows = None,
    max_sessions: MaxSessions = None,
    num_threads: NumThreads = None,
    trace_file: TraceFile = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Serve the draft: a head or a language model that proposes the levels of a tree."""
    flags = {
        "draft.model": model,
        "draft.revision": revision,
        "draft.target_model": target_model,
        "draft.target_revision": target_revision,
        "draft.vocabulary_file": vocabulary_file,
        "draft.vocabulary_size": vocabulary_size,
        "draft.device": device,
        "draft.dtype": dtype,
        "draft.host": host,
        "draft.port": port,
        "draft.metrics_port": metrics_port,
        "draft.kv_capacity_tokens": kv_capacity_tokens,
        "draft.max_rows": max_rows,
        "draft.max_sessions": max_sessions,
        "draft.num_threads": num_threads,
        "telemetry.trace_file": trace_file,
        "telemetry.log_level": log_level,
        "telemetry.log_format": log_format,
    }
    settings = load_config(config, flags)
    _run("draft", settings, settings.draft.num_threads)


def register(app: typer.Typer) -> None:
    """Adds the workers' commands."""
    app.command("serve-target")(serve_target)
    app.command("serve-draft")(serve_draft)


def _run(role: str, settings: ArboristConfig, num_threads: int) -> None:
    # Before torch is imported, which the worker's module does.
    apply_thread_environment(num_threads)
    configure_logging(settings.telemetry, role)
    if role == "draft":
        settings = with_servable_draft(settings)
    import_module(f"arborist.{role}.__main__").run(settings)
