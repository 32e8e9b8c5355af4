"""The error table crosses a status and comes back as the very same error."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from arborist.common.errors import (
    ERROR_DOMAIN,
    ERROR_TABLE,
    error_from_call,
    grpc_code,
    grpc_status,
    internal_error,
    restore_error,
)
from arborist.core.errors import (
    ArboristError,
    DeadlineError,
    ErrorCode,
    InvalidArgumentError,
    MismatchError,
    ResourceExhaustedError,
    SessionFailedError,
    StaleStampError,
    UnavailableError,
    UnimplementedError,
    UnknownSessionError,
)

SOME = [
    ArboristError("broken"),
    InvalidArgumentError("sampling.top_p", 1.5, "in (0, 1]"),
    UnknownSessionError("no such session"),
    StaleStampError("too old", metadata={"stamp": "1/2/3"}),
    ResourceExhaustedError("full", retry_after_ms=1250),
    MismatchError("other model", metadata={"expected": "a", "held": "b"}),
]


def raised(error: ArboristError) -> grpc.aio.AioRpcError:
    """What a client's stub raises when a server ended a call with the error."""
    status = grpc_status(error)
    return call_error(status.code, status.details, status.trailing_metadata)


def call_error(
    code: grpc.StatusCode, details: str = "", trailing: tuple = ()
) -> grpc.aio.AioRpcError:
    """A call that ended with a status."""
    metadata = grpc.aio.Metadata(*trailing)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details=details)


def same(one: ArboristError, other: ArboristError) -> bool:
    """Whether two errors are of one class and equal in everything a caller sees."""
    names = ("code", "reason", "message", "metadata", "retry_after_ms")
    return type(one) is type(other) and all(getattr(one, n) == getattr(other, n) for n in names)


def core_errors(base: type[ArboristError] = ArboristError) -> list[type[ArboristError]]:
    """Every error class of the core."""
    found = [base] if base.__module__ == "arborist.core.errors" else []
    return found + [one for sub in base.__subclasses__() for one in core_errors(sub)]


def test_the_table_lists_every_error_of_the_core_once() -> None:
    """A new class without a line in the table would lose its type on the wire."""
    classes = core_errors()

    assert sorted(one.reason for one in classes) == sorted(ERROR_TABLE)
    assert {one.reason: one for one in classes} == ERROR_TABLE


def test_codes_are_grpc_s_own() -> None:
    """Names and numbers agree with gRPC's, so that nothing is translated twice."""
    for code in ErrorCode:
        number, _ = grpc_code(code).value
        assert number == code.value


@pytest.mark.parametrize("error", SOME, ids=lambda one: one.reason)
def test_an_error_comes_back_as_it_went(error: ArboristError) -> None:
    """Class, message, metadata and advice survive a gRPC status."""
    assert same(error_from_call(raised(error)), error)


@pytest.mark.parametrize("reason", sorted(ERROR_TABLE))
def test_every_reason_restores_its_class(reason: str) -> None:
    """The class is found by reason, whatever its constructor takes."""
    code = ERROR_TABLE[reason].code.value
    error = restore_error(code, reason, "text", {"k": "v"}, 7)

    assert type(error) is ERROR_TABLE[reason]
    assert (error.message, str(error)) == ("text", "text")
    assert (error.metadata, error.retry_after_ms) == ({"k": "v"}, 7)


def test_the_status_carries_google_s_details() -> None:
    """Other languages read ErrorInfo, RetryInfo and BadRequest."""
    full = status_details(ResourceExhaustedError("full", retry_after_ms=1250))
    bad = status_details(InvalidArgumentError("top_p", 2, "in (0, 1]"))

    assert (full["ErrorInfo"].reason, full["ErrorInfo"].domain) == (
        "RESOURCE_EXHAUSTED",
        ERROR_DOMAIN,
    )
    assert full["RetryInfo"].retry_delay.ToMilliseconds() == 1250
    assert "BadRequest" not in full
    assert "RetryInfo" not in bad
    violation = bad["BadRequest"].field_violations[0]
    assert (violation.field, violation.description) == ("top_p", "top_p = 2: must be in (0, 1]")
    assert dict(bad["ErrorInfo"].metadata) == {"field": "top_p", "value": "2", "limit": "in (0, 1]"}


def status_details(error: ArboristError) -> dict:
    """Details of an error's status, by message name."""
    status = grpc_status(error)
    packed = status_pb2.Status.FromString(dict(status.trailing_metadata)["grpc-status-details-bin"])
    details = {}
    for one in packed.details:
        kind = getattr(error_details_pb2, one.TypeName().rpartition(".")[2])
        details[kind.DESCRIPTOR.name] = kind.FromString(one.value)
    return details


def test_a_status_fits_into_trailers() -> None:
    """A long value is cut: gRPC drops a call whose trailers are too large."""
    error = ArboristError("x" * 100_000, metadata={"value": "y" * 100_000})
    status = grpc_status(error)

    assert len(status.details) <= 512
    assert sum(len(value) for _, value in status.trailing_metadata) < 4096


@pytest.mark.parametrize(
    ("code", "error_type"),
    [
        (grpc.StatusCode.UNAVAILABLE, UnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineError),
        (grpc.StatusCode.UNIMPLEMENTED, UnimplementedError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ResourceExhaustedError),
        (grpc.StatusCode.CANCELLED, ArboristError),
        (grpc.StatusCode.DATA_LOSS, ArboristError),
    ],
)
def test_what_the_transport_reports_has_a_fixed_text(
    code: grpc.StatusCode, error_type: type[ArboristError]
) -> None:
    """GRPC's own words name hosts and ports; they stay inside."""
    error = error_from_call(call_error(code, "ipv4:10.1.2.3:9102: refused"))

    assert type(error) is error_type
    assert error.code is ErrorCode.__members__.get(code.name, ErrorCode.INTERNAL)
    assert "10.1.2.3" not in error.message


def test_details_of_another_domain_are_not_ours() -> None:
    """A proxy's ErrorInfo does not pass for one of the table."""
    info = error_details_pb2.ErrorInfo(reason="STALE_STAMP", domain="example.com")
    status = status_pb2.Status(code=14, message="m")
    status.details.add().Pack(info)
    packed = rpc_status.to_status(status)

    error = error_from_call(call_error(packed.code, "m", packed.trailing_metadata))
    assert type(error) is UnavailableError


@given(data=st.binary(max_size=100), kind=st.sampled_from(["", "ErrorInfo", "RetryInfo"]))
def test_corrupt_details_are_ignored(data: bytes, kind: str) -> None:
    """Whatever a peer puts into the trailer, an error comes out."""
    if kind:
        status = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="m")
        status.details.add(type_url=f"type.googleapis.com/google.rpc.{kind}", value=data)
        data = status.SerializeToString()
    trailing = (("grpc-status-details-bin", data),)
    error = error_from_call(call_error(grpc.StatusCode.UNAVAILABLE, "m", trailing))

    assert isinstance(error, UnavailableError)


def test_an_unknown_reason_keeps_code_and_reason() -> None:
    """A newer peer's error is still told apart by code."""
    error = restore_error(10, "NEW_THING", "text", {}, 0)

    assert type(error) is ArboristError
    assert (error.code, error.reason) == (ErrorCode.ABORTED, "NEW_THING")
    assert ArboristError.reason == "INTERNAL"


def test_internal_errors_say_nothing_but_an_incident() -> None:
    """Two incidents differ, and the text is fixed."""
    one, other = internal_error(SessionFailedError, "the session failed"), internal_error()

    assert isinstance(one, SessionFailedError)
    assert one.message == f"the session failed (incident {one.metadata['incident']})"
    assert one.metadata != other.metadata
