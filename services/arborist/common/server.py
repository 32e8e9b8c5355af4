"""A gRPC server of ours: health, reflection, keepalive, clear errors, graceful stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterable, Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from arborist.core.errors import UnavailableError

MAX_INTERNAL_MESSAGE_BYTES = 16 * 1024 * 1024
"""Longest message between controller and workers."""

_KEEPALIVE_TIME_MS = 2_000
_KEEPALIVE_TIMEOUT_MS = 2_000
_METADATA_FACTOR = 4
# What may be under way on a stream unread: 16 parts of features, at 1 ms both ways 4 GB/s.
_WINDOW_BYTES = 4 * 1024 * 1024


def channel_options(max_message_bytes: int) -> list[tuple[str, int | str]]:
    """Returns what both ends of an internal connection set.

    `grpc.http2.ping_timeout_ms` is what makes keepalive notice a frozen peer (the two keepalive
    options alone do not); a round's own deadline stays the real detector.

    Args:
        max_message_bytes: Longest message, either way.
    """
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # A fixed window in place of one that is fitted by a ping beside every frame.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
        # Controller and workers are never reached through a proxy of the environment.
        ("grpc.enable_http_proxy", 0),
    ]


def server_options(
    max_message_bytes: int, max_metadata_bytes: int | None = None
) -> list[tuple[str, int | str]]:
    """Returns the options of a server; see `channel_options`.

    Args:
        max_message_bytes: Longest message, either way.
        max_metadata_bytes: Longest metadata that its services accept; None = gRPC's default.
    """
    options = [
        *channel_options(max_message_bytes),
        # A client's pings at our own pace are no offence.
        ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_TIME_MS // 2),
        # Otherwise a second server takes half of the connections without a word.
        ("grpc.so_reuseport", 0),
    ]
    if max_metadata_bytes is not None:
        # gRPC counts more for an entry than its name and value, and from its soft limit on refuses
        # at random: so it only bounds what is read, and the service says what is too long.
        read_bytes = _METADATA_FACTOR * max_metadata_bytes
        options.append(("grpc.max_metadata_size", read_bytes))
        options.append(("grpc.absolute_max_metadata_size", read_bytes))
    return options


class RpcServer:
    """An aio server that says SERVING only when told so, and NOT_SERVING before it stops."""

    def __init__(
        self,
        service_names: Sequence[str],
        *,
        max_message_bytes: int = MAX_INTERNAL_MESSAGE_BYTES,
        max_metadata_bytes: int | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        reflect: bool = True,
        setting: str = "port",
    ) -> None:
        """Makes a server without services; add them to `grpc_server`, then `start`.

        Args:
            service_names: Full names of the services it will have, for health and reflection.
            max_message_bytes: Longest message, either way.
            max_metadata_bytes: Longest metadata that its services accept; None = gRPC's default.
            interceptors: For every call.
            reflect: Whether to offer reflection.
            setting: Name of the setting that holds the port, for the error text.
        """
        self.grpc_server = grpc.aio.server(
            options=server_options(max_message_bytes, max_metadata_bytes),
            interceptors=tuple(interceptors),
        )
        self._service_names = tuple(service_names)
        self._setting = setting
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc_server)
        if reflect:
            names = (*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self.grpc_server)

    async def start(self, host: str, port: int) -> str:
        """Binds and starts, NOT_SERVING yet.

        Args:
            host: Address to bind.
            port: Port to bind; 0 = any.
        Returns:
            The address bound, host:port.
        Raises:
            UnavailableError: The port is in use or the host is not ours; one line.
        """
        await self.set_serving(False)
        address = f"[{host}]" if ":" in host else host
        try:
            _check_bindable(host, port)
            bound = self.grpc_server.add_insecure_port(f"{address}:{port}")
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise UnavailableError(
                f"{self._setting} = {port}: cannot listen on {address}:{port} "
                f"({(reason or 'it is in use').lower()}); stop what uses it or choose another port"
            ) from None
        await self.grpc_server.start()
        return f"{address}:{bound}"

    async def set_serving(self, serving: bool) -> None:
        """Sets the health of the server and of every service of it."""
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", *self._service_names):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Says NOT_SERVING, takes no new calls, and ends running ones after `grace_s`."""
        await self._health.enter_graceful_shutdown()
        await self.grpc_server.stop(grace_s)


async def wait_for_signal(
    signals: Iterable[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
    on_second: Callable[[], None] | None = None,
) -> signal.Signals:
    """Waits until the process is told to stop.

    Args:
        signals: What tells it.
        on_second: Called when a second one comes while stopping; None = the default action again.
    Returns:
        The signal that came.
    """
    loop = asyncio.get_running_loop()
    came: asyncio.Future[signal.Signals] = loop.create_future()

    def note(one: signal.Signals) -> None:
        if not came.done():
            came.set_result(one)
        elif on_second is not None:
            on_second()

    watched = list(signals)
    for one in watched:
        loop.add_signal_handler(one, note, one)
    try:
        return await came
    finally:
        if on_second is None:
            for one in watched:
                with contextlib.suppress(ValueError):
                    loop.remove_signal_handler(one)


def _check_bindable(host: str, port: int) -> None:
    """Raises OSError if the address is taken; gRPC would say so in several lines of its own."""
    if port == 0:
        return
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
