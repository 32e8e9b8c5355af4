"""`response_format` of a request: free text, any JSON object, or JSON that fits a schema."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeAlias

from pydantic import PlainValidator

from arborist.core.errors import InvalidArgumentError
from arborist.core.schema_text import RESPONSE_FORMAT
from arborist.orchestrator.api.incoming import JsonObjectFormat, JsonSchemaFormat, ResponseFormat

_SCHEMA_FIELD = f"{RESPONSE_FORMAT}.json_schema"
# What `json_schema` may say besides; every schema is kept to strictly.
_TYPES: dict[str, tuple[type, str]] = {
    "name": (str, "text"),
    "description": (str, "text"),
    "strict": (bool, "true or false"),
}


def read_format(value: Any) -> ResponseFormat | None:
    """Returns what an output must be; None = free text.

    Args:
        value: As decoded from JSON.
    Raises:
        InvalidArgumentError: Names the part that is wrong.
    """
    if not isinstance(value, dict):
        raise InvalidArgumentError(RESPONSE_FORMAT, "no object", "an object with a type")
    kind = value.get("type")
    known = {"type", "json_schema"} if kind == "json_schema" else {"type"}
    _refuse_others(RESPONSE_FORMAT, value, known)
    if kind == "json_schema":
        return _schema_format(value.get("json_schema"))
    if kind == "json_object":
        return JsonObjectFormat()
    if kind != "text":
        raise InvalidArgumentError(
            f"{RESPONSE_FORMAT}.type", "another", "'text', 'json_object' or 'json_schema'"
        )
    return None


def _schema_format(value: Any) -> JsonSchemaFormat:
    if not isinstance(value, dict):
        raise InvalidArgumentError(_SCHEMA_FIELD, "no object", "an object with a schema")
    _refuse_others(_SCHEMA_FIELD, value, {"schema", *_TYPES})
    for name, (kind, limit) in _TYPES.items():
        if value.get(name) is not None and not isinstance(value[name], kind):
            raise InvalidArgumentError(f"{_SCHEMA_FIELD}.{name}", "something else", limit)
    schema = value.get("schema")
    if not isinstance(schema, dict):
        raise InvalidArgumentError(f"{_SCHEMA_FIELD}.schema", "no object", "a JSON schema")
    return JsonSchemaFormat(json.dumps(schema, ensure_ascii=False))


def _refuse_others(field: str, value: dict[str, Any], known: set[str]) -> None:
    for name in value:
        if name not in known:
            shown = name[:64].encode("unicode_escape").decode("ascii")
            raise InvalidArgumentError(
                f"{field}.{shown}", "given", "absent: there is no such field"
            )


Format: TypeAlias = Annotated[ResponseFormat | None, PlainValidator(read_format)]
"""The field, read."""
