"""Where a worker's spans go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class SpanSink(Protocol):
    """Takes finished spans; never blocks and never raises."""

    def record(
        self,
        name: str,
        traceparent: str,
        start_ns: int,
        end_ns: int,
        attributes: Mapping[str, str | int | float | bool],
    ) -> None:
        """Takes one finished span.

        Args:
            name: Name of the span.
            traceparent: W3C trace context of its parent.
            start_ns: Unix time, nanoseconds.
            end_ns: Unix time, nanoseconds.
            attributes: Values, without prompt or output text.
        """
        ...


class NullSpanSink:
    """Forgets every span."""

    def record(
        self,
        name: str,
        traceparent: str,
        start_ns: int,
        end_ns: int,
        attributes: Mapping[str, str | int | float | bool],
    ) -> None:
        """Does nothing."""
