"""`arborist train-tokenizer`: a byte-level BPE tokenizer from texts, as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arborist.core.errors import InvalidArgumentError


def train_tokenizer(
    texts: Annotated[
        list[Path],
        typer.Argument(
            help="JSON lines with text, or prompt and response; .gz too; or a folder of them."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write: tokenizer and chat template.")],
    vocab_size: Annotated[int, typer.Option(help="Most token ids, special tokens included.")],
    special_token: Annotated[
        list[str] | None,
        typer.Option(help="One more special token besides the chat format's; repeatable."),
    ] = None,
) -> None:
    """Train a tokenizer, for a target that is to be trained from scratch."""
    from arborist.training import tokenizer

    if out.exists() and not out.is_dir():
        raise InvalidArgumentError("--out", out, "a folder, or nothing yet")
    trained = tokenizer.train_tokenizer(texts, vocab_size, special_token or ())
    trained.save_pretrained(out)
    typer.echo(f"tokens={len(trained)} of {vocab_size}: {out}")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("train-tokenizer")(train_tokenizer)
