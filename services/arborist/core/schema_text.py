"""A JSON schema as a client sends it: its limits, checked before anybody compiles it."""

from __future__ import annotations

import json

from arborist.core.errors import InvalidArgumentError

RESPONSE_FORMAT = "response_format"
"""What every door calls the field that asks for JSON."""
MAX_SCHEMA_BYTES = 65_536
"""Longest JSON schema, in UTF-8 bytes."""
ANY_OBJECT = '{"type": "object"}'
"""The schema of any JSON object."""


def check_schema(field: str, schema: str, max_bytes: int, max_depth: int) -> None:
    """Refuses what is no JSON object or too large; whether it can be compiled the target says.

    Args:
        field: What the caller calls it.
        schema: Text that UTF-8 can carry.
        max_bytes: Most bytes.
        max_depth: Deepest nesting of brackets; the outermost counts 1.
    Raises:
        InvalidArgumentError: Names field, value and limit; never the schema's text.
    """
    size = len(schema.encode())
    if not 1 <= size <= max_bytes:
        raise InvalidArgumentError(field, f"{size} bytes", f"1 to {max_bytes} bytes")
    # Before parsing: the parser itself takes only so much.
    depth = nesting(schema)
    if depth > max_depth:
        raise InvalidArgumentError(field, f"nested {depth} deep", f"at most {max_depth} deep")
    try:
        value = json.loads(schema)
    except ValueError:
        raise InvalidArgumentError(field, f"{size} bytes", "valid JSON") from None
    if not isinstance(value, dict):
        raise InvalidArgumentError(field, f"{size} bytes", "a JSON object")


def nesting(text: str) -> int:
    """Returns how deep the brackets of a JSON text nest, those inside strings left out."""
    depth = deepest = 0
    in_string = escaped = False
    for letter in text:
        if escaped:
            escaped = False
        elif in_string:
            escaped = letter == "\\"
            in_string = letter != '"'
        elif letter == '"':
            in_string = True
        elif letter in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif letter in "]}":
            depth -= 1
    return deepest
