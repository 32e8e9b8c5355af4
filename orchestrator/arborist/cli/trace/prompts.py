"""Prompts to trace: token ids from the command line or from a file of JSON lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from arborist.cli.trace.traced_round import PromptId
from arborist.core.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class TracePrompt:
    """One prompt.

    Attributes:
        id: Names its rounds; distinct among the prompts of a run.
        prompt_ids: Token ids; the model's vocabulary is checked when it is decoded.
    """

    id: PromptId
    prompt_ids: tuple[int, ...]


def parse_prompt_ids(text: str) -> TracePrompt:
    """Reads `1,2,3`; the prompt's id is 0.

    Raises:
        InvalidArgumentError: There is none, or something is no integer.
    """
    try:
        ids = tuple(int(one) for one in text.split(",") if one.strip())
    except ValueError:
        raise InvalidArgumentError(
            "--prompt-ids", "not integers", "integers with commas: 1,2,3"
        ) from None
    if not ids:
        raise InvalidArgumentError("--prompt-ids", "0 tokens", "at least 1 token")
    return TracePrompt(0, ids)


def read_prompts(path: Path) -> list[TracePrompt]:
    """Reads JSON lines `{"id", "prompt_ids"}`; a line without id gets its number, from 0.

    Raises:
        InvalidArgumentError: The file cannot be read or is empty, a line is no such object, or an
            id comes twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        reason = error.strerror or "no reason given"
        raise InvalidArgumentError(
            "--prompts-file", path, f"a file that can be read ({reason})"
        ) from None
    except UnicodeDecodeError:
        raise InvalidArgumentError("--prompts-file", path, "UTF-8 text") from None
    prompts: list[TracePrompt] = []
    seen: set[PromptId] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        prompt = _parse(f"{path.name}:{number}", line, len(prompts))
        if prompt.id in seen:
            raise InvalidArgumentError(f"{path.name}:{number}", f"id {prompt.id}", "a new id")
        seen.add(prompt.id)
        prompts.append(prompt)
    if not prompts:
        raise InvalidArgumentError("--prompts-file", path, "a file with at least one prompt")
    return prompts


def _parse(where: str, line: str, index: int) -> TracePrompt:
    try:
        record = json.loads(line)
    except ValueError:  # Not JSON, or an integer of thousands of digits.
        raise InvalidArgumentError(where, "not JSON", "a JSON object per line") from None
    if not isinstance(record, dict) or "prompt_ids" not in record:
        raise InvalidArgumentError(where, "no prompt_ids", 'an object {"id", "prompt_ids"}')
    name, ids = record.get("id", index), record["prompt_ids"]
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise InvalidArgumentError(f"{where} id", type(name).__name__, "a string or an integer")
    if not isinstance(ids, list) or not ids:
        raise InvalidArgumentError(
            f"{where} prompt_ids", "no list", "a list of token ids, not empty"
        )
    for position, one in enumerate(ids):
        if isinstance(one, bool) or not isinstance(one, int):
            raise InvalidArgumentError(
                f"{where} prompt_ids[{position}]", type(one).__name__, "an integer"
            )
    return TracePrompt(name, tuple(ids))
