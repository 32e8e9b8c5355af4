"""Pools on the wire: what is sent comes back, what breaks the contract is refused."""

import numpy as np
import pytest

from arborist.common import draft_wire
from arborist.common.command import RunWork
from arborist.common.pool_wire import pool_from_pb, pool_to_pb
from arborist.core.engine import ExpandTree
from arborist.core.errors import InvalidArgumentError
from arborist.core.pool import Pool, PoolLevel
from arborist.core.stamp import Stamp
from arborist.core.tree import Level
from arborist.v1 import draft_pb2 as pb

NAN = np.full(10, np.nan, dtype="<f4").tobytes()


def pool() -> Pool:
    """Levels of two and three rows."""
    levels = []
    for rows in (2, 3):
        tokens = np.arange(2 * rows, dtype=np.int64).reshape(rows, 2)
        logprobs = -tokens.astype(np.float32) / 3
        frontier = np.arange(rows, dtype=np.int64)[::-1]
        levels.append(PoolLevel(frontier, Level(tokens, logprobs), 0.25 * rows))
    return Pool(levels)


def test_a_pool_comes_back_as_it_was_sent() -> None:
    """Ragged levels, rows, tokens, fp32 log-probs and times survive, as does the reply around."""
    message = draft_wire.draft_result(7, pool(), 0.5, 2.5)
    reply = draft_wire.draft_reply(pb.DraftResult.FromString(message.SerializeToString()))
    assert (reply.command_id, reply.queue_ms, reply.compute_ms) == (7, 0.5, 2.5)
    assert isinstance(reply.outcome, Pool)
    assert reply.outcome.compute_ms == [0.5, 0.75]
    for ours, sent in zip(reply.outcome.levels, pool().levels, strict=True):
        np.testing.assert_array_equal(ours.frontier, sent.frontier)
        np.testing.assert_array_equal(ours.level.tokens, sent.level.tokens)
        np.testing.assert_array_equal(ours.level.logprobs, sent.level.logprobs)
        assert ours.level.logprobs.dtype == np.float32


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("level_rows", []),
        ("level_rows", [1] * 16),
        ("level_rows", [0, 5]),
        ("level_rows", [33]),
        ("level_rows", [2, 2]),
        ("top_k", 0),
        ("top_k", 33),
        ("top_k", 3),
        ("rows", [0]),
        ("tokens", [1]),
        ("tokens", [5] * 10),
        ("tokens", [-1, *range(1, 10)]),
        ("logprobs", b""),
        ("logprobs", NAN),
        ("level_compute_ms", [1.0]),
        ("level_compute_ms", [-1.0, 1.0]),
        ("level_compute_ms", [float("nan"), 1.0]),
        ("level_compute_ms", [float("inf"), 1.0]),
    ],
    ids=str,
)
def test_a_pool_that_does_not_add_up_is_refused(field: str, value: object) -> None:
    """The error names what is wrong and harms its command alone."""
    message = pool_to_pb(pool())
    message.ClearField(field)  # type: ignore[arg-type]
    message.MergeFrom(pb.Pool(**{field: value}))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="pool"):
        pool_from_pb(message)
    outcome = draft_wire.draft_reply(pb.DraftResult(command_id=1, pool=message)).outcome
    assert isinstance(outcome, InvalidArgumentError)


def test_an_expand_tree_arrives_as_it_was_meant() -> None:
    """It follows the command before it, and its levels' spans are of the caller's trace."""
    work = ExpandTree(("c", "s"), "eagle2", 5, 4)
    parent = f"00-{0xABC:032x}-{0xDEF:016x}-01"
    message = draft_wire.expand_tree_command(3, Stamp(1, 2, 1), work, parent, [0xDEF, 1, 2, 3])
    body = draft_wire.draft_command(message, "c", 32).body
    assert isinstance(body, RunWork)
    assert (body.work, body.stamp) == (work, Stamp(1, 2, 1))
    assert body.follows
    assert not body.bulk
    assert body.level_traceparents[0] == parent
    assert body.level_traceparents[3] == f"00-{0xABC:032x}-{3:016x}-01"


def test_levels_without_spans_have_none() -> None:
    """An untraced command records nothing for its levels."""
    work = ExpandTree(("c", "s"), "chain", 2, 1)
    message = draft_wire.expand_tree_command(3, Stamp(1, 2, 1), work)
    body = draft_wire.draft_command(message, "c", 32).body
    assert isinstance(body, RunWork)
    assert body.level_traceparents == ()
