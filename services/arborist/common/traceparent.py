"""W3C trace context: the identifiers that join spans of several processes into one trace."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

# https://www.w3.org/TR/trace-context/: version-trace_id-parent_id-flags, lower-case hex.
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 0x01


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A position in a trace: the parent of whatever is recorded next.

    Attributes:
        trace_id: 128 bits, never 0.
        span_id: 64 bits, never 0.
        sampled: Whether the caller records the trace.
    """

    trace_id: int
    span_id: int
    sampled: bool = True


def new_trace_id() -> int:
    """Returns 128 random bits, never 0."""
    return random.getrandbits(128) or 1


def new_span_id() -> int:
    """Returns 64 random bits, never 0."""
    return random.getrandbits(64) or 1


def format_traceparent(trace_id: int, span_id: int) -> str:
    """Returns the header of a recorded span, version 00.

    Args:
        trace_id: 128 bits, not 0.
        span_id: 64 bits, not 0; the span that becomes the parent.

    Returns:
        55 characters.
    """
    return f"00-{trace_id:032x}-{span_id:016x}-01"


def with_span_id(traceparent: str, span_id: int) -> str:
    """Returns the header of another span of the same trace.

    Args:
        traceparent: Header of version 00; of anything else the result is ignored as that would be.
        span_id: 64 bits.
    """
    return f"{traceparent[:36]}{span_id:016x}{traceparent[52:]}"


def parse_traceparent(text: str | None) -> TraceContext | None:
    """Reads a header.

    Args:
        text: Header as received; None or empty when there was none.

    Returns:
        The context, or None for everything the standard tells a receiver to ignore. A version
        newer than 00 may carry more parts, which are ignored.
    """
    match = _TRACEPARENT.fullmatch(text) if text else None
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return None
    context = TraceContext(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & _SAMPLED))
    return context if context.trace_id and context.span_id else None
