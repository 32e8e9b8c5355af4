"""What all request bodies have in common: strict types, no unknown fields, errors in one line."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, from_json

from arborist.core.errors import InvalidArgumentError
from arborist.orchestrator.api.openai.field_list import honoured_fields


class RequestModel(BaseModel):
    """A request body, or part of one. Numbers are numbers here: `"1"` is text."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    @classmethod
    def read(cls, body: bytes) -> Self:
        """Returns a body's request.

        Args:
            body: JSON.
        Raises:
            InvalidArgumentError: Names the first field that is wrong, never a client's text.
        """
        try:
            values = from_json(body)
        except ValueError:
            raise InvalidArgumentError("body", f"{len(body)} bytes", "valid JSON") from None
        if not isinstance(values, dict):
            raise InvalidArgumentError("body", "no object", "a JSON object")
        try:
            return cls.model_validate(honoured_fields(values, frozenset(cls.model_fields)))
        except ValidationError as error:
            # Without the input: it would be copied, however long it is.
            first = error.errors(include_url=False, include_context=False)[0]
            raise _first_error(first) from None


def _first_error(error: ErrorDetails) -> InvalidArgumentError:
    field = _path(error["loc"])
    if error["type"] == "missing":
        return InvalidArgumentError(field, "absent", "given")
    if error["type"] == "extra_forbidden":
        return InvalidArgumentError(field, "given", "absent: there is no such field")
    limit = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return InvalidArgumentError(field, _shown(error["input"]), limit)


def _path(parts: tuple[int | str, ...]) -> str:
    path = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in parts)
    shown = path.removeprefix(".")[:128]
    return shown.encode("unicode_escape").decode("ascii")


def _shown(value: Any) -> str:
    """Returns a wrong value, or what kind of thing it is where it could hold a client's text."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)[:32]
    kinds: tuple[tuple[type, str], ...] = ((str, "text"), (list, "a list"), (dict, "an object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "something else")
