"""Names the spans of one request before they end, so that workers can hang theirs below."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from arborist.orchestrator.round import Round


@dataclass(frozen=True, slots=True)
class SpanName:
    """A span to be: its id and what a worker needs to become its child."""

    span_id: int
    traceparent: str


UNTRACED = SpanName(0, "")


class RequestTrace(Protocol):
    """Trace of one request; building spans happens off the critical path."""

    def name_span(self) -> SpanName:
        """Returns a fresh span id with its traceparent; UNTRACED when tracing is off."""
        ...

    def record_round(self, round_: Round) -> None:
        """Takes a finished round; returns at once."""
        ...


class NoTrace:
    """A request that is not traced."""

    def name_span(self) -> SpanName:
        """Returns UNTRACED."""
        return UNTRACED

    def record_round(self, round_: Round) -> None:
        """Does nothing."""
