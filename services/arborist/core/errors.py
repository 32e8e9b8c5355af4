"""What can go wrong, once for every layer: gRPC and HTTP only translate these."""

from __future__ import annotations

from enum import Enum


class ErrorCode(Enum):
    """Canonical codes in use; names and numbers are google.rpc.Code's."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class ArboristError(Exception):
    """Base of every error that may reach a caller.

    Attributes:
        code: Canonical code.
        reason: Machine-readable reason, UPPER_SNAKE_CASE, one per subclass.
        message: One line for people, without prompt or output text.
        metadata: Reason-specific details (field, value, limit, ...).
        retry_after_ms: Milliseconds to wait before a retry; 0 = no advice.
    """

    code = ErrorCode.INTERNAL
    reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        metadata: dict[str, str] | None = None,
        retry_after_ms: int = 0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata or {}
        self.retry_after_ms = retry_after_ms


class InvalidArgumentError(ArboristError):
    """A parameter is out of bounds; nothing was started."""

    code = ErrorCode.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"

    def __init__(self, field: str, value: object, limit: str) -> None:
        """Builds the message from what a caller needs to mend the request.

        Args:
            field: Name of the field as the caller wrote it.
            value: Offending value or its size; never user text.
            limit: What is allowed, in words.
        """
        super().__init__(
            f"{field} = {value}: must be {limit}",
            metadata={"field": field, "value": str(value), "limit": limit},
        )


class RequestTooLargeError(InvalidArgumentError):
    """A request has more bytes than the server reads."""

    reason = "REQUEST_TOO_LARGE"


class UnknownSessionError(ArboristError):
    """The worker has no such session: open it again and prefill."""

    code = ErrorCode.NOT_FOUND
    reason = "UNKNOWN_SESSION"


class UnknownModelError(ArboristError):
    """No model of that name is served."""

    code = ErrorCode.INVALID_ARGUMENT
    reason = "UNKNOWN_MODEL"


class StaleStampError(ArboristError):
    """The command is older than the last one; nothing changed."""

    code = ErrorCode.ABORTED
    reason = "STALE_STAMP"


class UnauthenticatedError(ArboristError):
    """A key is needed, and there was none that is let in."""

    code = ErrorCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class ResourceExhaustedError(ArboristError):
    """Full: sessions, KV or queue; retry after `retry_after_ms`."""

    code = ErrorCode.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"


class UnavailableError(ArboristError):
    """Loading, draining, unreachable or gone."""

    code = ErrorCode.UNAVAILABLE
    reason = "UNAVAILABLE"


class DeadlineError(ArboristError):
    """A command or request outlived its deadline."""

    code = ErrorCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class MismatchError(ArboristError):
    """Head, target, protocol or configuration do not fit together."""

    code = ErrorCode.FAILED_PRECONDITION
    reason = "MISMATCH"


class UnimplementedError(ArboristError):
    """A reserved part of the contract."""

    code = ErrorCode.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"


class SessionFailedError(ArboristError):
    """One session broke (say NaN logits); others are untouched."""

    code = ErrorCode.INTERNAL
    reason = "SESSION_FAILED"
