"""`arborist create-key`: a new API key, and the line by which a server knows it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from arborist.common.api_key import (
    ApiKey,
    api_key_line,
    check_key_name,
    key_digest,
    new_api_key,
    read_expiry,
    read_key_file,
)
from arborist.core.errors import InvalidArgumentError

_OWNER_ONLY = 0o600


def create_key(
    name: Annotated[str, typer.Argument(help="Whose it is; keys of one name are one client.")],
    file: Annotated[
        Path | None,
        typer.Option(help="Append its line to this key file; unset = print it on stderr."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="When it ends: 2027-01-31, or a time; UTC unless said.")
    ] = None,
) -> None:
    """Print a new API key, once; the server's file gets its digest only."""
    check_key_name("NAME", name)
    expires_s = None if expires is None else read_expiry("--expires", expires)
    if expires is not None and expires_s is not None and expires_s <= time.time():
        raise InvalidArgumentError("--expires", expires, "a date or time to come")
    key = new_api_key()
    line = api_key_line(ApiKey(name, key_digest(key.encode()), expires_s))
    if file is None:
        typer.echo(line, err=True)
    else:
        _append(file, line)
    typer.echo(key)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("create-key")(create_key)


def _append(path: Path, line: str) -> None:
    """Adds a line to a key file, which only its owner may read if it is new.

    Raises:
        InvalidArgumentError: It is there and no key file.
    """
    begins = ""
    if path.exists():
        read_key_file(path)
        content = path.read_bytes()
        begins = "" if not content or content.endswith(b"\n") else "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _OWNER_ONLY)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.write(f"{begins}{line}\n")
