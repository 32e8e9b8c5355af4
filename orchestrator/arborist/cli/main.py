"""The `arborist` command."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Protocol, cast

import typer

from arborist.cli.failure import report_failure
from arborist.common.threads_config import apply_grpc_environment


class CommandModule(Protocol):
    """A module of commands; what is heavy it imports only when its command runs."""

    def register(self, app: typer.Typer) -> None:
        """Adds its commands."""
        ...


COMMANDS = (
    "serve",
    "generate",
    "chat.command",
    "demo",
    "bench.command",
    "bench_serve.command",
    "trace.command",
    "doctor.command",
    "workers",
    "serve_controller",
    "create_key",
    "import_head",
    "rank_vocab",
    "train",
    "train_tokenizer",
)
"""Modules of `arborist.cli`, in the order of the help."""


def build_cli() -> typer.Typer:
    """Returns the application with every command."""
    app = typer.Typer(
        name="arborist",
        help="EAGLE-2 speculative decoding as services: same output, sooner.",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for name in COMMANDS:
        # Late: some of them import gRPC, whose environment is set before.
        module = cast("CommandModule", import_module(f"arborist.cli.{name}"))
        module.register(app)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and ends the process; whatever fails is one line on stderr.

    Args:
        arguments: What follows `arborist`; None = this process's own.

    Raises:
        SystemExit: Always. 0 = done, 1 = failed, 2 = wrong usage or configuration, 130 = Ctrl-C.
    """
    apply_grpc_environment()
    given = sys.argv[1:] if arguments is None else list(arguments)
    command = typer.main.get_command(build_cli())
    try:
        result = command.main(args=given, prog_name="arborist", standalone_mode=False)
    except BaseException as error:  # noqa: BLE001 - the one place where every failure ends
        raise SystemExit(report_failure(error, debug="--debug" in given)) from None
    logging.shutdown()
    raise SystemExit(result if isinstance(result, int) else 0)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"arborist {version('arborist')}")
        raise typer.Exit


def _options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_print_version,
            help="Print the version and end.",
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of a failure.")
    ] = False,
) -> None:
    """EAGLE-2 speculative decoding as services: same output, sooner."""


if __name__ == "__main__":
    main()
