"""Whole pools: protobuf messages to our own types and back."""

from __future__ import annotations

import math

import numpy as np

from arborist.common.candidates import read_candidates
from arborist.core.errors import InvalidArgumentError
from arborist.core.pool import Pool, PoolLevel
from arborist.core.shape import MAX_DEPTH, MAX_TOP_K
from arborist.core.tree import Level
from arborist.v1 import draft_pb2 as pb


def pool_to_pb(pool: Pool) -> pb.Pool:
    """Returns the message of a pool."""
    levels = pool.levels
    return pb.Pool(
        tokens=np.concatenate([one.level.tokens.ravel() for one in levels]).tolist(),
        top_k=levels[0].level.tokens.shape[1],
        level_rows=[len(one.frontier) for one in levels],
        rows=np.concatenate([one.frontier for one in levels]).tolist(),
        logprobs=b"".join(one.level.logprobs.astype("<f4", copy=False).tobytes() for one in levels),
        level_compute_ms=pool.compute_ms,
    )


def pool_from_pb(message: pb.Pool) -> Pool:
    """Returns a pool; whether its rows are of the level before, `Pool.tree` checks.

    Raises:
        InvalidArgumentError: Sizes that do not fit, a negative or repeated token in a row, or
            numbers that are not finite.
    """
    widths = list(message.level_rows)
    num_rows = _num_rows(message, widths)
    top_k = message.top_k
    tokens, logprobs = read_candidates(
        "pool", message.tokens, message.logprobs, num_rows, top_k
    )  # [R, k] both
    rows = np.array(message.rows, dtype=np.int64)  # [R]
    levels: list[PoolLevel] = []
    begin = 0
    for width, compute_ms in zip(widths, message.level_compute_ms, strict=True):
        part = slice(begin, begin + width)
        levels.append(PoolLevel(rows[part], Level(tokens[part], logprobs[part]), compute_ms))
        begin += width
    return Pool(levels)


def _num_rows(message: pb.Pool, widths: list[int]) -> int:
    """Checks sizes and times; returns the rows of all levels together."""
    if not 1 <= len(widths) < MAX_DEPTH:
        raise InvalidArgumentError("pool.level_rows", len(widths), f"1..{MAX_DEPTH - 1} levels")
    if not (min(widths) >= 1 and max(widths) <= MAX_TOP_K):
        raise InvalidArgumentError("pool.level_rows", widths, f"each in [1, {MAX_TOP_K}]")
    if not 1 <= message.top_k <= MAX_TOP_K:
        raise InvalidArgumentError("pool.top_k", message.top_k, f"in [1, {MAX_TOP_K}]")
    num_rows = sum(widths)
    if len(message.rows) != num_rows:
        raise InvalidArgumentError("pool.rows", len(message.rows), f"{num_rows}, as level_rows")
    times = list(message.level_compute_ms)
    if len(times) != len(widths) or min(times) < 0 or not math.isfinite(sum(times)):
        raise InvalidArgumentError(
            "pool.level_compute_ms", f"{len(times)} times", f"{len(widths)}, finite and >= 0"
        )
    return num_rows
