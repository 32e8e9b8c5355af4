"""What bounds an HTTP request whatever it asks for."""

from __future__ import annotations

from dataclasses import dataclass

from arborist.common.config import ControllerConfig
from arborist.orchestrator.api.metadata_size import MAX_METADATA_BYTES


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of one request.

    Attributes:
        max_request_bytes: Longest body.
        client_timeout_s: Longest wait for its body, and for a client that does not read, in
            seconds.
        max_metadata_bytes: Longest headers, names and values together.
    """

    max_request_bytes: int = 1 << 20
    client_timeout_s: float = 60.0
    max_metadata_bytes: int = MAX_METADATA_BYTES

    @classmethod
    def from_config(cls, controller: ControllerConfig) -> HttpLimits:
        """Returns the limits of a configuration."""
        return cls(
            controller.max_request_bytes,
            controller.client_timeout_s,
            controller.max_metadata_bytes,
        )
