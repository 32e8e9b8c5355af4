"""The one error table: `ArboristError` to gRPC status with `google.rpc` details, and back."""

from __future__ import annotations

import secrets
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from arborist.core.errors import (
    ArboristError,
    DeadlineError,
    ErrorCode,
    InvalidArgumentError,
    MismatchError,
    RequestTooLargeError,
    ResourceExhaustedError,
    SessionFailedError,
    StaleStampError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    UnknownModelError,
    UnknownSessionError,
)

ERROR_DOMAIN = "arborist"

ERROR_TABLE: dict[str, type[ArboristError]] = {
    one.reason: one
    for one in (
        ArboristError,
        DeadlineError,
        InvalidArgumentError,
        MismatchError,
        RequestTooLargeError,
        ResourceExhaustedError,
        SessionFailedError,
        StaleStampError,
        UnauthenticatedError,
        UnavailableError,
        UnimplementedError,
        UnknownModelError,
        UnknownSessionError,
    )
}
"""Every error that may cross a process boundary, by reason."""

_TRANSPORT_ERRORS: dict[grpc.StatusCode, tuple[type[ArboristError], str]] = {
    grpc.StatusCode.UNAVAILABLE: (UnavailableError, "the peer cannot be reached"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (DeadlineError, "the call outlived its deadline"),
    grpc.StatusCode.UNIMPLEMENTED: (UnimplementedError, "the peer does not have this method"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (
        ResourceExhaustedError,
        "a message is over its size limit or the peer takes no more calls",
    ),
    grpc.StatusCode.UNAUTHENTICATED: (UnauthenticatedError, "the peer asks for another API key"),
    grpc.StatusCode.FAILED_PRECONDITION: (MismatchError, "the peer refused the call"),
}
"""What gRPC itself reports, without our details; its own text may name hosts and stays inside."""

_MAX_TEXT_LENGTH = 512
"""Longest text in a status, in characters: HTTP/2 trailers are refused beyond 8 KiB or so."""


def grpc_code(code: ErrorCode) -> grpc.StatusCode:
    """Returns gRPC's own code of the same name."""
    status_code: grpc.StatusCode = grpc.StatusCode[code.name]
    return status_code


def grpc_status(error: ArboristError) -> grpc.Status:
    """Returns the status to end a call with: `await context.abort_with_status(...)`.

    Args:
        error: What went wrong.
    Returns:
        Code and message, with ErrorInfo always, RetryInfo when there is advice when to retry, and
        BadRequest for an invalid argument, packed as google.rpc.Status.
    """
    metadata = {key: _short(value) for key, value in error.metadata.items()}
    details = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=metadata)
    ]
    if error.retry_after_ms > 0:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(error.retry_after_ms)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if error.code is ErrorCode.INVALID_ARGUMENT and "field" in metadata:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=metadata["field"], description=_short(error.message)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    status = status_pb2.Status(code=error.code.value, message=_short(error.message))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    packed_status: grpc.Status = rpc_status.to_status(status)
    return packed_status


def error_from_call(call: grpc.RpcError) -> ArboristError:
    """Restores the error a call ended with.

    Args:
        call: What a stub raised: `grpc.aio.AioRpcError`, or the sync `grpc.RpcError`.
    Returns:
        The very class the peer raised when it sent our ErrorInfo; else what the transport's code
        means, with a fixed text.
    """
    details = _details(call)
    if details is not None:
        return details
    code = call.code() if isinstance(call, (grpc.Call, grpc.aio.AioRpcError)) else None
    if code in _TRANSPORT_ERRORS:
        error_type, message = _TRANSPORT_ERRORS[code]
        return error_type(message)
    known = {one.name: one for one in ErrorCode}
    error = ArboristError(f"the call ended with {code.name if code else 'no status'}")
    if code is not None and code.name in known:
        error.code, error.reason = known[code.name], code.name
    return error


def restore_error(
    code: int, reason: str, message: str, metadata: dict[str, str], retry_after_ms: int
) -> ArboristError:
    """Rebuilds an error from its parts as they crossed the wire.

    Args:
        code: google.rpc.Code value; counts only when the reason is unknown here.
        reason: Reason of the table.
        message: Text for people.
        metadata: Details.
        retry_after_ms: Advice, 0 = none.
    Returns:
        An instance of the class with that reason, equal in all attributes; a plain
        `ArboristError` with the sender's code and reason when the reason is not in the table.
    """
    error_type = ERROR_TABLE.get(reason, ArboristError)
    error = error_type.__new__(error_type)
    # Past the subclass' own constructor, which would build message and metadata anew.
    ArboristError.__init__(error, message, metadata=metadata, retry_after_ms=max(0, retry_after_ms))
    if reason not in ERROR_TABLE:
        values = {one.value: one for one in ErrorCode}
        error.code, error.reason = values.get(code, ErrorCode.INTERNAL), reason or "INTERNAL"
    return error


def internal_error(
    error_type: type[ArboristError] = ArboristError, text: str = "internal error"
) -> ArboristError:
    """Returns what a caller may know of an exception nobody expected.

    The text is fixed and the exception's own stays in the log: it could hold addresses, paths or
    prompt text.

    Args:
        error_type: Class to raise.
        text: Fixed words.
    Returns:
        An error whose metadata holds `incident`, 12 hex digits to look for in the log.
    """
    incident = secrets.token_hex(6)
    return error_type(f"{text} (incident {incident})", metadata={"incident": incident})


def _details(call: grpc.RpcError) -> ArboristError | None:
    try:
        status: Any = rpc_status.from_call(call)
        return None if status is None else _error_of_status(status)
    except (AttributeError, ValueError, DecodeError):
        return None  # Not a call at all, or details that are corrupt or contradict it.


def _error_of_status(status: Any) -> ArboristError | None:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    found, retry_after_ms = False, 0
    for detail in status.details:
        if detail.Unpack(info):
            found = info.domain == ERROR_DOMAIN
        elif detail.Unpack(retry):
            retry_after_ms = retry.retry_delay.ToMilliseconds()
    if not found:
        return None
    return restore_error(
        status.code, info.reason, status.message, dict(info.metadata), retry_after_ms
    )


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT_LENGTH else text[: _MAX_TEXT_LENGTH - 1] + "…"
