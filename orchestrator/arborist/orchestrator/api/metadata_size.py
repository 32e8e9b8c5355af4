"""How much a request may say beside its body, the same for both doors."""

from __future__ import annotations

from collections.abc import Iterable

from arborist.core.errors import RequestTooLargeError

MAX_METADATA_BYTES = 8192


def check_metadata(entries: Iterable[tuple[str | bytes, str | bytes]], max_bytes: int) -> None:
    """Refuses a request with too long metadata.

    Args:
        entries: gRPC metadata or HTTP headers, as names with values.
        max_bytes: Most bytes of all names and values together.
    Raises:
        RequestTooLargeError: Says how many there are, never what they say.
    """
    num_bytes = sum(_length(name) + _length(value) for name, value in entries)
    if num_bytes > max_bytes:
        limit = f"at most {max_bytes} bytes (controller.max_metadata_bytes)"
        raise RequestTooLargeError("metadata", f"{num_bytes} bytes", limit)


def _length(part: str | bytes) -> int:
    return len(part if isinstance(part, bytes) else part.encode())
