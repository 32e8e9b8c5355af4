"""Question files of EAGLE and Spec-Bench: JSON lines with `turns`, gzip or not."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

from arborist.core.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class Question:
    """One conversation to hold.

    Attributes:
        question_id: The file's `id` or `question_id`, else the line number.
        turns: What the user says, one string per turn; at least one.
    """

    question_id: str
    turns: tuple[str, ...]


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """Reads a question file.

    Args:
        path: JSON lines, gzip if the name ends in .gz.
        limit: Most questions to take, spread evenly over the file; None = all.
    Returns:
        The questions in file order.
    Raises:
        InvalidArgumentError: The file is missing, empty, or a line has no `turns`.
    """
    if not path.is_file():
        raise InvalidArgumentError("--prompts", path, "an existing file of JSON lines")
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            lines = [line for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError("--prompts", path, "readable UTF-8 text") from error
    questions = [_question(path, number, line) for number, line in enumerate(lines, start=1)]
    if not questions:
        raise InvalidArgumentError("--prompts", path, "a file with at least one question")
    if limit is None or limit >= len(questions):
        return questions
    return [questions[index * len(questions) // limit] for index in range(limit)]


def _question(path: Path, number: int, line: str) -> Question:
    where = f"{path.name}:{number}"
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidArgumentError(where, "not JSON", "a JSON object per line") from error
    turns = record.get("turns") if isinstance(record, dict) else None
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) for t in turns):
        raise InvalidArgumentError(where, "no turns", "an object with `turns`: a list of strings")
    identity = record.get("id", record.get("question_id", number))
    return Question(str(identity), tuple(turns))
