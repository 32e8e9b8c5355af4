"""`arborist serve-controller`: the public gRPC API over workers of known addresses, no Ray."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from arborist.common.config import ArboristConfig, load_config
from arborist.common.logging_setup import configure_logging
from arborist.core.errors import InvalidArgumentError


def serve_controller(
    target_addresses: Annotated[
        str | None, typer.Option(help="Target workers: host:port with commas, or a DNS name's.")
    ] = None,
    draft_addresses: Annotated[
        str | None, typer.Option(help="Draft workers, likewise; unset = plain decoding.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file; flags and environment win over it.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The target's folder or hub name, for its tokenizer; unset = embedded."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind (127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="gRPC port (9000); 0 = any.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Prometheus port (9464); 0 = any, -1 = off.")
    ] = None,
    max_sessions: Annotated[
        int | None, typer.Option(help="Most requests decoded at a time.")
    ] = None,
    max_queued_requests: Annotated[
        int | None, typer.Option(help="Most requests waiting; more are refused.")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Port of the HTTP API; 0 = any; set nowhere = none.")
    ] = None,
    api_keys_file: Annotated[
        Path | None,
        typer.Option(help="Let in only who has a key of this file (`arborist create-key`)."),
    ] = None,
    trace_file: Annotated[
        Path | None, typer.Option(help="Append spans to this file, JSON lines.")
    ] = None,
    trace_detail: Annotated[
        str | None, typer.Option(help="level = a span per draft level; round = per round.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="human or json.")] = None,
) -> None:
    """Serve clients from workers that run already, as a process of its own, without Ray."""
    flags = {
        "controller.target_addresses": target_addresses,
        "controller.draft_addresses": draft_addresses,
        "controller.grpc_host": host,
        "controller.grpc_port": port,
        "controller.metrics_port": metrics_port,
        "controller.http_host": host,
        "controller.http_port": http_port,
        "controller.api_keys_file": api_keys_file,
        "controller.max_sessions": max_sessions,
        "controller.max_queued_requests": max_queued_requests,
        "target.model": model,
        "target.revision": revision,
        "telemetry.trace_file": trace_file,
        "telemetry.trace_detail": trace_detail,
        "telemetry.log_level": log_level,
        "telemetry.log_format": log_format,
    }
    settings = load_config(config, flags)
    if not settings.controller.target_addresses:
        raise InvalidArgumentError(
            "controller.target_addresses", "empty", "at least one host:port (--target-addresses)"
        )
    configure_logging(settings.telemetry, "controller")
    import uvloop

    uvloop.run(_serve(settings, with_http="http_port" in settings.controller.model_fields_set))


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("serve-controller")(serve_controller)


async def _serve(settings: ArboristConfig, *, with_http: bool) -> None:
    from arborist.common.server import wait_for_signal
    from arborist.orchestrator.controller_server import ControllerServer
    from arborist.orchestrator.directory import FixedDirectory
    from arborist.orchestrator.http_server import HttpServer

    known = settings.controller
    directory = FixedDirectory(known.target_addresses, known.draft_addresses)
    server = ControllerServer(settings, directory)
    http = HttpServer(known.http_host, known.http_port) if with_http else None
    try:
        await server.start()
        if http is not None:
            await http.start(server.http_app())
        await server.controller.wait_ready(
            settings.ray.ready_timeout_s, want_draft=bool(known.draft_addresses)
        )
        models = ",".join(model.id for model in server.controller.models())
        metrics = f" metrics={server.metrics_url}" if server.metrics_url else ""
        door = f" {http.url}" if http is not None else ""
        sys.stdout.write(
            f"ready: controller grpc://{server.address}{door} model={models}{metrics}\n"
        )
        sys.stdout.flush()
        await wait_for_signal()
    finally:
        grace_s = settings.controller.stop_grace_s
        await asyncio.gather(server.stop(grace_s), *([http.stop(grace_s)] if http else []))
