"""Who may come in: the same answer at every door."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self

from arborist.common.api_key import ApiKey, key_digest, read_key_file
from arborist.common.config import ControllerConfig
from arborist.core.errors import ArboristError, UnauthenticatedError
from arborist.orchestrator.api.client_key import client_key

_RELOAD_PERIOD_S = 5.0
_NAME_DIGITS = 12

_log = logging.getLogger(__name__)


class Doorkeeper:
    """Knows the keys that are let in; without any configured, everybody is.

    Keys are found by their SHA-256, so what a comparison could leak in time is of the digest, which
    leads to no key.
    """

    def __init__(
        self,
        keys: Sequence[ApiKey] = (),
        key_file: Path | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Reads the file.

        Args:
            keys: Keys that stay.
            key_file: Further ones, which may change; None = none.
            clock: Unix time, in seconds.

        Raises:
            InvalidArgumentError: The file cannot be used.
        """
        self._fixed = tuple(keys)
        self._file = key_file
        self._clock = clock
        self._stamp: tuple[int, ...] = ()
        self._by_digest = {one.digest: one for one in self._fixed}
        if key_file is not None:
            self._stamp = _stamp(key_file)
            self._take(read_key_file(key_file))

    @classmethod
    def from_config(cls, settings: ControllerConfig) -> Self:
        """Makes the one of a configuration.

        Raises:
            InvalidArgumentError: The key file cannot be used.
        """
        named = [
            ApiKey(f"key-{one.removeprefix('sha256:')[:_NAME_DIGITS]}", one)
            for one in settings.api_keys
        ]
        return cls(named, settings.api_keys_file)

    @property
    def asks(self) -> bool:
        """Returns whether a key is needed at all."""
        return bool(self._fixed) or self._file is not None

    def admit(self, headers: Iterable[tuple[str, str | bytes]], peer: str) -> str:
        """Returns who a request is from: what requests of one client have in common.

        Args:
            headers: gRPC metadata or HTTP headers, names in lower case; of several with one name
                the last counts.
            peer: Address of the other end, as `client_key` takes it.
        Raises:
            UnauthenticatedError: A key is needed, and there is none or one that is not let in.
        """
        found = dict(headers)
        if not self.asks:
            return client_key(found.items(), peer)
        presented = _presented(found)
        if presented is None:
            raise UnauthenticatedError("no API key: send `authorization: Bearer KEY`")
        key = self._by_digest.get(key_digest(presented))
        if key is None or (key.expires_s is not None and self._clock() >= key.expires_s):
            raise UnauthenticatedError("the API key is not known, or no longer valid")
        return f"key:{key.name}"

    def reload(self) -> None:
        """Reads the file again if it has changed; what cannot be used changes nothing.

        A file that is being written or replaced must not lock everybody out; one without keys does.
        """
        if self._file is None:
            return
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        try:
            keys = read_key_file(self._file)
        except ArboristError as error:
            _log.error("the keys stay as they were: %s", error.message)
        else:
            self._take(keys)
            _log.info("API keys read again: %d", len(self._by_digest))
        self._stamp = stamp

    async def follow(self) -> None:
        """Keeps up with the file until it is cancelled."""
        while self._file is not None:
            await asyncio.sleep(_RELOAD_PERIOD_S)
            try:
                await asyncio.to_thread(self.reload)
            except Exception:  # noqa: BLE001 - whatever it was, keys can still be revoked later
                _log.exception("the API keys could not be read again")

    def _take(self, keys: Iterable[ApiKey]) -> None:
        # One assignment: requests of another thread see all of it or nothing.
        self._by_digest = {one.digest: one for one in (*keys, *self._fixed)}


def _presented(headers: dict[str, str | bytes]) -> bytes | None:
    scheme, _, token = _bytes(headers.get("authorization", b"")).partition(b" ")
    if scheme.lower() == b"bearer" and token.strip():
        return token.strip()
    return _bytes(headers.get("x-api-key", b"")).strip() or None


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _stamp(path: Path) -> tuple[int, ...]:
    """Returns what changes when a file does; empty = it is not there."""
    try:
        facts = path.stat()
    except OSError:
        return ()
    return (facts.st_mtime_ns, facts.st_size, facts.st_ino)
