"""How a command fails: one line on stderr that says what to do, and an exit code."""

from __future__ import annotations

import errno
import sys
import traceback

import typer

from arborist.core.errors import ArboristError, ErrorCode

FAILED = 1
WRONG_USAGE = 2
INTERRUPTED = 130


def report_failure(error: BaseException, *, debug: bool = False) -> int:
    """Prints a failure.

    Args:
        error: What ended the command.
        debug: Print the traceback first.

    Returns:
        The exit code.
    """
    # typer carries its own copy of click: its exceptions are told by their shape.
    exit_code = getattr(error, "exit_code", None)
    if isinstance(error, typer.Exit):
        return int(exit_code or 0)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        typer.echo("arborist: interrupted", err=True)
        return INTERRUPTED
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    format_message = getattr(error, "format_message", None)
    if format_message is not None and exit_code is not None:
        message = _one_line(format_message())
        if message:  # None when the help was printed instead.
            typer.echo(f"arborist: {message}{_help_hint(error)}", err=True)
        return int(exit_code)
    typer.echo(f"arborist: {describe(error)}", err=True)
    if isinstance(error, ArboristError) and error.code is ErrorCode.INVALID_ARGUMENT:
        return WRONG_USAGE
    return FAILED


def describe(error: BaseException) -> str:
    """Returns a failure in one line.

    Args:
        error: Anything that can end a command.
    """
    if isinstance(error, ArboristError):
        return _one_line(error.message)
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"a port is in use ({_one_line(str(error))}): stop what uses it or choose another"
    if isinstance(error, ModuleNotFoundError):
        return f"Python module {error.name} is missing: reinstall arborist with its dependencies"
    if isinstance(error, OSError):
        return _one_line(str(error))
    text = _one_line(str(error))
    return f"internal error ({type(error).__name__}: {text}); `arborist --debug …` prints more"


def _help_hint(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", None)
    return f" (try `{path} --help`)" if path else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())
