"""Errors and raw tensors: what every layer relies on."""

from __future__ import annotations

import re

import pytest

from arborist.core.errors import ArboristError, ErrorCode, InvalidArgumentError
from arborist.core.tensor import RawTensor


def subclasses() -> list[type[ArboristError]]:
    """Every error there is."""
    return ArboristError.__subclasses__()


def test_every_error_has_a_reason_of_its_own() -> None:
    """Reasons are UPPER_SNAKE_CASE and never shared, so that clients can tell errors apart."""
    reasons = [one.reason for one in subclasses()]
    assert len(set(reasons)) == len(reasons)
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]+[A-Z0-9]", reason) for reason in reasons)
    assert all(isinstance(one.code, ErrorCode) for one in subclasses())


def test_an_invalid_argument_names_field_value_and_limit() -> None:
    """The message can be shown to a user as it is."""
    error = InvalidArgumentError("top_p", 1.5, "a number in (0, 1]")
    assert error.message == str(error) == "top_p = 1.5: must be a number in (0, 1]"
    assert error.metadata == {"field": "top_p", "value": "1.5", "limit": "a number in (0, 1]"}
    assert error.retry_after_ms == 0


def test_a_raw_tensor_checks_its_length() -> None:
    """Bytes that do not fill the shape are refused."""
    tensor = RawTensor("bfloat16", (3, 4), bytes(24))
    assert len(tensor) == 3
    with pytest.raises(ValueError, match="23 bytes, shape needs 24"):
        RawTensor("bfloat16", (3, 4), bytes(23))
