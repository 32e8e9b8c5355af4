"""What bounds an HTTP request whatever it asks for."""

from __future__ import annotations

from dataclasses import dataclass

from arborist.common.config import ControllerConfig


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of one request.

    Attributes:
        max_request_bytes: Longest body.
        client_timeout_s: Longest wait for its body, and for a client that does not read, in
            seconds.
    """

    max_request_bytes: int = 1 << 20
    client_timeout_s: float = 60.0

    @classmethod
    def from_config(cls, controller: ControllerConfig) -> HttpLimits:
        """Returns the limits of a configuration."""
        return cls(controller.max_request_bytes, controller.client_timeout_s)
