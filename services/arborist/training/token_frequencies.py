"""Which tokens the training data asks for, and how often."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from arborist.core.errors import InvalidArgumentError
from arborist.training.records import EncodedRecord


@dataclass(frozen=True)
class FrequentTokens:
    """The most frequent token ids, ascending, and their share of all labels, in [0, 1]."""

    token_ids: list[int]
    coverage: float


def frequent_tokens(
    examples: Iterable[EncodedRecord], size: int, vocab_size: int, always: Sequence[int] = ()
) -> FrequentTokens:
    """The ids that labels name most often; ties go to the smaller id.

    Args:
        examples: of the training data; tokens with a weight above 0 are its labels.
        size: ids wanted.
        vocab_size: ids of the target.
        always: ids that are in whatever their count: a draft that cannot propose an end never does.
    Raises:
        InvalidArgumentError: more ids than the target has, or none.
    """
    if not 1 <= size <= vocab_size:
        raise InvalidArgumentError("draft-vocab-size", size, f"in [1, {vocab_size}], the target's")
    counts = np.zeros(vocab_size, dtype=np.int64)
    for example in examples:
        labels = example.token_ids[example.loss_weights > 0]
        counts += np.bincount(labels, minlength=vocab_size)
    rank = counts.astype(np.float64)
    rank[[one for one in always if 0 <= one < vocab_size]] = np.inf
    chosen = np.sort(np.argsort(-rank, kind="stable")[:size])
    total = int(counts.sum())
    return FrequentTokens(chosen.tolist(), float(counts[chosen].sum()) / total if total else 0.0)
