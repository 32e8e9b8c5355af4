"""Who a request is from, as far as it says so itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from urllib.parse import unquote

_HEADERS = ("authorization", "x-api-key")


def client_key(headers: Iterable[tuple[str, str | bytes]], peer: str) -> str:
    """Returns what requests of one client have in common; bounds count by it, nothing trusts it.

    Args:
        headers: gRPC metadata or HTTP headers, names in lower case.
        peer: Address of the other end with its port, as gRPC gives it ("ipv4:10.0.0.7:5123",
            "ipv6:%5B::1%5D:5123") or without the scheme.
    Returns:
        A digest of its `authorization` or `x-api-key`, which may be secret; without one the host
        alone, the same for every door.
    """
    found = dict(headers)
    for name in _HEADERS:
        value = found.get(name)
        if value:
            secret = value if isinstance(value, bytes) else value.encode()
            return f"{name}:{hashlib.sha256(secret).hexdigest()[:32]}"
    host, _, port = unquote(peer).rpartition(":")
    if not host or not port.isdecimal():
        return peer
    return host.removeprefix("ipv4:").removeprefix("ipv6:").strip("[]")
