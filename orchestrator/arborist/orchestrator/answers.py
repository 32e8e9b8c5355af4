"""Takes an answer out of the replies of a worker, or raises what the worker said instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from arborist.common.command import Reply
from arborist.core.errors import ArboristError, SessionFailedError

AnswerT = TypeVar("AnswerT")
ReceivedT = TypeVar("ReceivedT")


def answers_of(
    replies: Sequence[Reply[ReceivedT]], kind: type[AnswerT], worker: str
) -> list[AnswerT]:
    """Returns the parts of an answer.

    Args:
        replies: Parts as they came, at least one.
        kind: What the command promises.
        worker: "target" or "draft", for the message.
    Returns:
        One answer per part.
    Raises:
        ArboristError: What the worker answered instead; InvalidArgumentError also for a result
            that was malformed.
        SessionFailedError: An answer of another kind.
    """
    parts: list[AnswerT] = []
    for reply in replies:
        if isinstance(reply.outcome, ArboristError):
            raise reply.outcome
        if not isinstance(reply.outcome, kind):
            name = type(reply.outcome).__name__
            raise broken_contract(worker, f"expected {kind.__name__}, got {name}")
        parts.append(reply.outcome)
    return parts


def answer_of(replies: Sequence[Reply[ReceivedT]], kind: type[AnswerT], worker: str) -> AnswerT:
    """Returns an answer that has one part; see `answers_of`."""
    parts = answers_of(replies, kind, worker)
    if len(parts) != 1:
        raise broken_contract(worker, f"expected one {kind.__name__}, got {len(parts)} parts")
    return parts[0]


def broken_contract(worker: str, what: str) -> SessionFailedError:
    """Returns the error of a result that would corrupt the session if it were used."""
    return SessionFailedError(f"the {worker} worker broke its contract: {what}")
