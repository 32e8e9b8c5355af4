"""The flag by which commands that ask a server get their API key."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from arborist.common.config import API_KEY_VARIABLE

# In the environment a key is seen by fewer than on a command line.
ApiKeyOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--api-key", envvar=API_KEY_VARIABLE, help="Of the server, if it asks for one."),
]
