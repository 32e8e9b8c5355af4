"""The W3C trace context header."""

import pytest

from arborist.common.traceparent import (
    TraceContext,
    format_traceparent,
    new_span_id,
    new_trace_id,
    parse_traceparent,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


def test_a_header_is_read_back() -> None:
    """Formatting and parsing are inverse."""
    trace_id, span_id = new_trace_id(), new_span_id()
    header = format_traceparent(trace_id, span_id)

    assert len(header) == 55
    assert parse_traceparent(header) == TraceContext(trace_id, span_id, sampled=True)


def test_the_example_of_the_standard() -> None:
    """The header of the standard's first example gives its parts."""
    context = parse_traceparent(f"00-{TRACE}-{SPAN}-00")

    assert context == TraceContext(int(TRACE, 16), int(SPAN, 16), sampled=False)


def test_a_newer_version_may_carry_more() -> None:
    """Parts after the flags are ignored in versions we do not know."""
    assert parse_traceparent(f"01-{TRACE}-{SPAN}-01-more") is not None


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "nonsense",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01 ",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
    ],
)
def test_an_invalid_header_is_none(text: str | None) -> None:
    """Whatever the standard does not allow is as if it had not been sent."""
    assert parse_traceparent(text) is None


def test_ids_differ() -> None:
    """Ids are random and never 0."""
    assert len({new_span_id() for _ in range(1000)}) == 1000
    assert new_trace_id() < 1 << 128
    assert new_span_id() < 1 << 64
