"""Where workers are: fixed addresses, a DNS name, or whatever else knows."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from arborist.core.errors import UnavailableError


@dataclass(frozen=True, slots=True)
class WorkerAddresses:
    """Workers known, as host:port.

    Attributes:
        targets: Target workers.
        drafts: Draft workers.
    """

    targets: tuple[str, ...]
    drafts: tuple[str, ...]


class WorkerDirectory(Protocol):
    """Knows where workers are; asked again and again, never inside a round."""

    async def snapshot(self) -> WorkerAddresses:
        """Returns the workers known now.

        Raises:
            UnavailableError: The directory cannot be asked; what is known so far still counts.
        """
        ...


class FixedDirectory:
    """Addresses from the configuration; a name stands for all its addresses.

    A headless DNS name (one record per worker) so follows its workers without anything else.
    """

    def __init__(self, targets: Sequence[str], drafts: Sequence[str]) -> None:
        """Keeps addresses, host:port each."""
        self._targets = tuple(targets)
        self._drafts = tuple(drafts)

    async def snapshot(self) -> WorkerAddresses:
        """Returns the addresses, names resolved now.

        Raises:
            UnavailableError: A name cannot be resolved.
        """
        return WorkerAddresses(await _resolve(self._targets), await _resolve(self._drafts))


async def _resolve(addresses: tuple[str, ...]) -> tuple[str, ...]:
    resolved: dict[str, None] = {}  # In order, without repetitions.
    for address in addresses:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        for ip in await _addresses_of(host, port):
            resolved[f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"] = None
    return tuple(resolved)


async def _addresses_of(host: str, port: str) -> list[str]:
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass  # A name.
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, int(port), type=socket.SOCK_STREAM
        )
    except OSError as error:
        raise UnavailableError(f"worker name {host} cannot be resolved: {error.strerror}") from None
    # One family: a worker with two kinds of address is still one worker.
    family = socket.AF_INET if any(one[0] == socket.AF_INET for one in found) else socket.AF_INET6
    return sorted({str(one[4][0]) for one in found if one[0] == family})
