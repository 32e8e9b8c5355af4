"""A finished span as plain values, cheap enough to make inside a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from opentelemetry.trace import SpanKind

AttributeValue: TypeAlias = (
    str | bool | int | float | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]
)


class SpanRecord(NamedTuple):
    """One finished span; a tuple because it is built on the critical path.

    Attributes:
        name: Such as ``target.verify``.
        trace_id: 128 bits, never 0.
        span_id: 64 bits, never 0; may have been handed to workers before the span ended.
        parent_span_id: 64 bits; 0 = the root of its trace.
        start_ns: Unix time, nanoseconds.
        end_ns: Unix time, nanoseconds, not before `start_ns`.
        attributes: Values; never prompt or output text unless that is switched on.
        kind: Role of the span.
        error: Reason of the failure, such as ``DEADLINE_EXCEEDED``; None = none.
        remote_parent: Whether the parent lies in another process.
    """

    name: str
    trace_id: int
    span_id: int
    parent_span_id: int
    start_ns: int
    end_ns: int
    attributes: Mapping[str, AttributeValue]
    kind: SpanKind = SpanKind.INTERNAL
    error: str | None = None
    remote_parent: bool = False
