"""Prompts of a load: from a question file, or drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from arborist.cli.bench.questions import read_questions
from arborist.client.completion import ModelCard
from arborist.client.prompt import Message, Prompt
from arborist.core.errors import InvalidArgumentError

PromptForm: TypeAlias = Literal["chat", "text"]
_NUM_SYNTHETIC = 1024


def file_prompts(path: Path, form: PromptForm, limit: int | None) -> list[Prompt]:
    """Returns the first turn of every question; later turns would need the answers.

    Args:
        path: JSON lines with `turns`, gzip or not.
        form: chat = as a message in the model's template, text = as it stands.
        limit: Most questions, spread evenly over the file; None = all.
    Raises:
        InvalidArgumentError: The file is missing, empty or malformed.
    """
    texts = [question.turns[0] for question in read_questions(path, limit)]
    if form == "text":
        return list(texts)
    return [[Message("user", text)] for text in texts]


def synthetic_prompts(span: str, model: ModelCard, max_tokens: int, seed: int) -> list[Prompt]:
    """Returns prompts of random ids; a draft accepts less of their outputs than of real text.

    Args:
        span: "MIN:MAX" tokens, both inclusive, drawn uniformly.
        model: What is served.
        max_tokens: Most tokens of an output.
        seed: Same seed, same prompts.
    Raises:
        InvalidArgumentError: No such span, or it does not fit the context.
    """
    low, high = _span(span)
    if high + max_tokens > model.context_length:
        raise InvalidArgumentError(
            "--synthetic-prompt-tokens",
            span,
            f"at most {model.context_length - max_tokens} tokens: the context of {model.id} less "
            "--max-tokens",
        )
    rng = np.random.default_rng([seed, 1 << 33])
    lengths = rng.integers(low, high + 1, _NUM_SYNTHETIC)
    return [rng.integers(0, model.vocab_size, int(length)).tolist() for length in lengths]


def _span(text: str) -> Sequence[int]:
    parts = text.split(":")
    if len(parts) == 2 and all(one.isdecimal() for one in parts):
        low, high = int(parts[0]), int(parts[1])
        if 1 <= low <= high:
            return low, high
    raise InvalidArgumentError("--synthetic-prompt-tokens", text, "MIN:MAX with 1 <= MIN <= MAX")
