"""`arborist import-head`: a published head, whatever its format, made ready to be served."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arborist.core.errors import MismatchError

if TYPE_CHECKING:
    from arborist.client.completion import Completion
    from arborist.target.engine import HfTargetEngine

KV_CAPACITY_TOKENS = 1024
PROMPT_TOKENS = 8
LOW_TAU = 1.2
"""A head of the right target accepts more than this even on a prompt without sense."""


def import_head(
    source: Annotated[str, typer.Argument(help="Head to convert: folder or hub name.")],
    destination: Annotated[Path, typer.Argument(help="Folder to write, not there or empty.")],
    target: Annotated[str, typer.Option(help="Model the head belongs to: folder or hub name.")],
    revision: Annotated[str | None, typer.Option(help="Revision of a hub head.")] = None,
    target_revision: Annotated[str | None, typer.Option(help="Revision of a hub target.")] = None,
    max_tokens: Annotated[
        int, typer.Option(min=0, max=512, help="Tokens of the greedy check; 0 = no check.")
    ] = 32,
    device: Annotated[str, typer.Option(help="Of the check: cpu or cuda:N.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Of the check: float32, bfloat16 or float16.")
    ] = "float32",
) -> None:
    """Convert an EAGLE head of any format, check it against its target and try it."""
    # Imports torch, which no other command wants.
    from arborist.draft.import_head import import_head as convert

    imported = convert(
        source, destination, target, revision=revision, target_revision=target_revision
    )
    for line in imported.lines:
        typer.echo(line)
    if max_tokens:
        try:
            typer.echo(_try_head(imported.path, target, target_revision, max_tokens, device, dtype))
        except BaseException:
            shutil.rmtree(imported.path, ignore_errors=True)
            raise
    typer.echo(f"wrote {imported.path}")


def _try_head(
    head: Path, target: str, revision: str | None, max_tokens: int, device: str, dtype: str
) -> str:
    """Decodes greedily with and without the head; returns what came out, in one line."""
    from transformers.utils.logging import disable_progress_bar

    from arborist.draft.engine import load_draft
    from arborist.target.engine import load_target

    disable_progress_bar()
    engine = load_target(
        target,
        device=device,
        dtype=dtype,
        kv_capacity_tokens=KV_CAPACITY_TOKENS,
        revision=revision,
    )
    draft = load_draft(
        head,
        target,
        device=device,
        dtype=dtype,
        kv_capacity_tokens=KV_CAPACITY_TOKENS,
        target_revision=revision,
    )
    plain = _decode(engine, None, max_tokens)
    drafted = _decode(engine, draft, max_tokens)
    if plain.token_ids != drafted.token_ids:
        place = next(
            index
            for index, (one, other) in enumerate(
                zip(plain.token_ids, drafted.token_ids, strict=False)
            )
            if one != other
        )
        if dtype == "float32":
            raise MismatchError(f"greedy output differs with the head from token {place} on")
        return f"greedy check: output differs from token {place} on, as {dtype} may"

    tau = drafted.summary.speculation.tau
    line = f"greedy check: {len(plain.token_ids)} tokens, same without the head, tau {tau:.2f}"
    if tau < LOW_TAU:
        line += "; hardly anything was accepted: is this the target it was trained for?"
    return line


def _decode(engine: HfTargetEngine, draft: object, max_tokens: int) -> Completion:
    from arborist.cli.local import LocalModel
    from arborist.common.config import ArboristConfig
    from arborist.orchestrator.api.incoming import IncomingRequest, TokenPrompt

    vocab_size = engine.info.vocab_size
    # No text is known to suit the model; acceptance on real prompts is for the benchmark to say.
    prompt = TokenPrompt(tuple((7 * place + 1) % vocab_size for place in range(PROMPT_TOKENS)))
    model = LocalModel(engine, draft, None, ArboristConfig())  # type: ignore[arg-type]
    return model.complete(IncomingRequest(prompt, max_tokens=max_tokens, ignore_eos=True))


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("import-head")(import_head)
