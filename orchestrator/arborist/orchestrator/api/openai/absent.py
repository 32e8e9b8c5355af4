"""Fields of answers that are left out when there is nothing to say."""

from __future__ import annotations


def absent(value: object) -> bool:
    """Says whether a field is left out of a body rather than null."""
    return value is None
