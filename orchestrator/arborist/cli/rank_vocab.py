"""`arborist rank-vocab`: the token ids of a text by frequency, for a smaller draft vocabulary."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Protocol

import typer

from arborist.core.errors import InvalidArgumentError

COVERAGES = (0.9, 0.99, 0.999)


class Encoder(Protocol):
    """The part of a tokenizer that counting needs."""

    def encode(self, text: str) -> list[int]:
        """Returns token ids."""
        ...


def rank_vocab(
    texts: Annotated[
        list[Path],
        typer.Argument(
            help="Plain text, or JSON lines with text, response or output_ids; .gz too."
        ),
    ],
    out: Annotated[Path, typer.Option(help="JSON list to write: ids, most frequent first.")],
    target: Annotated[
        str | None, typer.Option(help="Whose tokenizer: folder or hub name; unset = embedded.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Keep so many ids; unset = all.")] = None,
) -> None:
    """Rank token ids by how often they occur in texts like those to be served (FR-Spec)."""
    from arborist.cli.bench.models import model_facts
    from arborist.common.config import load_config
    from arborist.orchestrator.api.tokenizer import load_tokenizer

    folder = load_config(None, {"target.model": target}).target.resolved_model()
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise InvalidArgumentError("--target", folder, "a folder with a tokenizer")
    counts = count_tokens(texts, tokenizer)
    ranked = rank_tokens(counts, model_facts(folder).eos_token_ids)[:size]
    out.write_text(json.dumps(ranked) + "\n", encoding="utf-8")
    total = sum(counts.values())
    covered = sum(counts[one] for one in ranked)
    typer.echo(f"tokens={total} ids={len(counts)} kept={len(ranked)} covered={covered / total:.4f}")
    for share in COVERAGES:
        typer.echo(f"ids for {share:.1%}: {ids_for(counts, share)}")


def count_tokens(paths: Iterable[Path], encoder: Encoder) -> Counter[int]:
    """Returns how often every token id occurs in the files.

    Raises:
        InvalidArgumentError: A file cannot be read, has a line of another kind, or all are empty.
    """
    counts: Counter[int] = Counter()
    for path in paths:
        try:
            for part in _parts(path):
                counts.update(encoder.encode(part) if isinstance(part, str) else part)
        except (OSError, UnicodeDecodeError, EOFError) as error:
            raise InvalidArgumentError("texts", path, f"a file that can be read: {error}") from None
    if not counts:
        raise InvalidArgumentError("texts", "no token", "files with at least one token")
    return counts


def rank_tokens(counts: Counter[int], always: Sequence[int]) -> list[int]:
    """Returns ids by (frequency descending, id ascending).

    Args:
        counts: Occurrences by id.
        always: Ids that come first whatever their count: without its end-of-sequence tokens a
            draft could never propose an end.
    """
    first = list(dict.fromkeys(always))
    rest = sorted(counts.keys() - set(first), key=lambda one: (-counts[one], one))
    return [*first, *rest]


def ids_for(counts: Counter[int], share: float) -> int:
    """Returns how many of the most frequent ids make up a share of all tokens."""
    wanted, seen = share * sum(counts.values()), 0
    for number, (_, count) in enumerate(counts.most_common(), start=1):
        seen += count
        if seen >= wanted:
            return number
    return len(counts)


def _parts(path: Path) -> Iterator[str | list[int]]:
    opener = gzip.open if path.suffix == ".gz" else open
    is_json = ".jsonl" in path.suffixes
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _read_row(line, f"{path.name}:{number}") if is_json else line


def _read_row(line: str, where: str) -> str | list[int]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if isinstance(row, dict):
        ids = row.get("output_ids")
        if isinstance(ids, list) and all(type(one) is int and one >= 0 for one in ids):
            return ids
        text = row.get("response", row.get("text"))
        if isinstance(text, str):
            return text
    raise InvalidArgumentError(where, "another line", "JSON with text, response or output_ids")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("rank-vocab")(rank_vocab)
