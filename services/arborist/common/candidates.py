"""Candidates as they travel: token ids and raw fp32 log-probs, row after row."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from arborist.core.errors import InvalidArgumentError
from arborist.core.tree import FloatArray, IntArray


def read_candidates(
    name: str, tokens: Iterable[int], logprobs: bytes, num_rows: int, top_k: int
) -> tuple[IntArray, FloatArray]:
    """Checks and shapes what a draft sent.

    Args:
        name: Field for errors.
        tokens: Token ids, row-major.
        logprobs: fp32, little-endian, in the same order.
        num_rows: Rows there must be.
        top_k: Tokens of a row.
    Returns:
        Tokens, int64, and log-probs, fp32, both (num_rows, top_k).
    Raises:
        InvalidArgumentError: Sizes that do not fit, a negative or repeated token in a row, or
            log-probs that are not finite.
    """
    # Plain Python on purpose: after a forward every cache is cold, and a few small numbers are
    # checked sooner than numpy's code is fetched.
    ids = list(tokens)
    count = num_rows * top_k
    if len(ids) != count or len(logprobs) != 4 * count:
        raise InvalidArgumentError(
            name,
            f"{len(ids)} tokens, {len(logprobs)} bytes",
            f"{count} tokens, {4 * count} bytes",
        )
    if min(ids) < 0 or not _rows_distinct(ids, top_k):
        raise InvalidArgumentError(f"{name}.tokens", "a row", "distinct token ids >= 0")
    values = np.frombuffer(logprobs, dtype="<f4")
    if not math.isfinite(sum(values.tolist())):  # In fp64, so fp32 values cannot overflow it.
        raise InvalidArgumentError(f"{name}.logprobs", "NaN or infinity", "finite")
    return (
        np.array(ids, dtype=np.int64).reshape(num_rows, top_k),
        values.astype(np.float32, copy=False).reshape(num_rows, top_k),
    )


def _rows_distinct(tokens: list[int], top_k: int) -> bool:
    """Returns whether no row of `top_k` tokens has one twice."""
    begins = range(0, len(tokens), top_k)
    return all(len(set(tokens[begin : begin + top_k])) == top_k for begin in begins)
