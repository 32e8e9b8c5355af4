"""Builds data files of the project's own instruction records."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from arborist.training.instructions.derived import full_answer, lead_summary
from arborist.training.instructions.templates import instruction
from arborist.training.records import Record, data_files, read_records

OWN_SOURCE = "own:instruction templates"
Row = dict[str, str]


def build_instructions(
    data: Path, out: Path, num_templates: int = 20000, num_summaries: int = 4000, seed: int = 0
) -> dict[str, int]:
    """Write ``own_instructions``, ``own_answers`` and ``own_summaries`` files to a folder.

    Args:
        data: folder of training files; answers and summaries are derived from records in it.
        out: folder for the three ``.jsonl.gz`` files.
        num_templates: template draws; duplicates are dropped.
        num_summaries: lead summaries of plain text.
        seed: of every draw.
    Returns:
        records by file written.
    """
    rng = random.Random(seed)
    files = data_files(data)
    counts = {"own_instructions": _write(out, "own_instructions", _templates(rng, num_templates))}
    if "instruct_short" in files:
        rows = _answers(read_records(files["instruct_short"]))
        counts["own_answers"] = _write(out, "own_answers", rows)
    texts = [name for name in ("stories_public_domain", "dialogue", "docs_tech") if name in files]
    if texts:
        pool = [
            record
            for name in texts
            for record in read_records(files[name])
            if record.response is None
        ]
        rows = _summaries(pool, num_summaries, rng)
        counts["own_summaries"] = _write(out, "own_summaries", rows)
    return counts


def _templates(rng: random.Random, count: int) -> Iterator[Row]:
    seen: set[tuple[str, str]] = set()
    for _ in range(count):
        kind, pair = instruction(rng)
        if pair not in seen:
            seen.add(pair)
            yield {
                "prompt": pair[0],
                "response": pair[1],
                "source": f"{OWN_SOURCE}/{kind}",
                "licence": "Apache-2.0",
            }


def _answers(records: Iterable[Record]) -> Iterator[Row]:
    for record in records:
        answer = full_answer(record.text, record.response or "")
        if answer is not None:
            yield {
                "prompt": record.text,
                "response": answer,
                "source": f"{record.source} (answer put into a sentence)",
                "licence": "as its source",
            }


def _summaries(records: list[Record], count: int, rng: random.Random) -> Iterator[Row]:
    rng.shuffle(records)
    made = 0
    for record in records:
        body = record.text.split("\n\n", 2)[-1] if record.text.startswith("#") else record.text
        words = len(body.split())
        if words < 80 or body.startswith(("A:", "User:")):
            continue
        flat = " ".join(" ".join(body.split()).split(" ")[: rng.choice([100, 150, 250, 500, 900])])
        summary = lead_summary(flat)
        if summary is None or "|" in summary or "`" in summary:
            continue
        yield {
            "prompt": f"Summarize: {flat}",
            "response": summary,
            "source": f"{record.source} (lead as summary)",
            "licence": "as its source",
        }
        made += 1
        if made == count:
            return


def _write(folder: Path, name: str, rows: Iterable[Row]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count
