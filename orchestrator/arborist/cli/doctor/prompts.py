"""Prompts to measure tau on: ten neutral ones of our own, or a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arborist.core.errors import InvalidArgumentError
from arborist.orchestrator.api.incoming import ChatTurn

QUESTIONS = (
    "Explain in a few sentences why the sky is blue.",
    "Write a short story about a dog that finds an old map.",
    "What are the main differences between a lake and a river?",
    "List five things to pack for a weekend in the mountains.",
    "How do I boil an egg so that the yolk stays soft?",
    "Describe how a bicycle stays upright while it is moving.",
    "A shop sells pens at 3 coins each. How many pens can I buy with 20 coins?",
    "Write a Python function that returns the largest number of a list.",
    "Summarise what happens to water between the sea and the rain.",
    "Give me three tips for learning a new language.",
)
_FIELDS = '"prompt" (text), "messages" or "prompt_ids"'


@dataclass(frozen=True, slots=True)
class DoctorPrompt:
    """One prompt; exactly one of the three is not empty.

    Attributes:
        text: Used as it is, as by a client that sends plain text.
        turns: Messages, rendered with the target's chat template.
        token_ids: Used as they are.
    """

    text: str = ""
    turns: tuple[ChatTurn, ...] = ()
    token_ids: tuple[int, ...] = ()


def own_prompts(*, as_chat: bool) -> list[DoctorPrompt]:
    """Returns ten neutral prompts.

    Args:
        as_chat: As messages, for a target with a chat template; else as text.
    """
    if as_chat:
        return [DoctorPrompt(turns=(ChatTurn("user", one),)) for one in QUESTIONS]
    return [DoctorPrompt(text=one) for one in QUESTIONS]


def read_prompts(path: Path) -> list[DoctorPrompt]:
    """Reads JSON lines, each with `prompt`, `messages` or `prompt_ids`.

    Raises:
        InvalidArgumentError: The file cannot be read, is empty, or a line is no such object.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(
            "--prompts", path, f"a UTF-8 file that can be read ({error})"
        ) from None
    prompts = [
        _parse(f"{path.name}:{number}", line)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise InvalidArgumentError("--prompts", path, "a file with at least one prompt")
    return prompts


def _parse(where: str, line: str) -> DoctorPrompt:
    try:
        record = json.loads(line)
    except ValueError:
        raise InvalidArgumentError(where, "not JSON", "a JSON object per line") from None
    if not isinstance(record, dict):
        raise InvalidArgumentError(where, type(record).__name__, f"an object with {_FIELDS}")
    text, messages, ids = (record.get(name) for name in ("prompt", "messages", "prompt_ids"))
    if isinstance(text, str) and text:
        return DoctorPrompt(text=text)
    if isinstance(messages, list) and messages and all(_is_message(one) for one in messages):
        return DoctorPrompt(turns=tuple(ChatTurn(one["role"], one["content"]) for one in messages))
    if isinstance(ids, list) and ids and all(type(one) is int for one in ids):
        return DoctorPrompt(token_ids=tuple(ids))
    raise InvalidArgumentError(where, "no prompt", f"an object with {_FIELDS}")


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), str) for name in ("role", "content")
    )
