"""Prometheus exposition of one process, on a port of its own."""

from __future__ import annotations

import errno
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

from arborist.common.config import ConfigError

OFF = -1


def new_registry() -> CollectorRegistry:
    """Returns a registry with the process's own numbers (``process_…``)."""
    # A `_created` gauge beside every counter doubles the series and tells nobody anything.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


def metrics_url(host: str, port: int) -> str:
    """Returns where a process shows its metrics; empty = it does not.

    Args:
        host: Address that was bound.
        port: Port that was bound, −1 = off.
    """
    if port == OFF:
        return ""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"


class MetricsServer:
    """Serves ``/metrics`` from a thread; nothing is done until somebody asks."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        """Binds the port.

        Args:
            registry: What is shown.
            host: Address to bind.
            port: 0 = any free port, −1 = off.

        Raises:
            ConfigError: The port is in use or the address is not ours.
        """
        self.port = OFF
        self._server: WSGIServer | None = None
        self._thread: Thread | None = None
        if port == OFF:
            return
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"{error.strerror}"
            raise ConfigError(
                f"metrics_port = {port}: {host}:{port} {reason}; give another port, 0 for any, "
                "or -1 for none"
            ) from None
        self.port = self._server.server_port

    def close(self) -> None:
        """Frees the port; safe to call twice."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None
