"""Who may come in: the same answer at every door."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self

from arborist.common.api_key import ApiKey, key_digest, read_key_file
from arborist.common.config import ControllerConfig
from arborist.core.errors import ArboristError, UnauthenticatedError
from arborist.orchestrator.api.client_key import client_key

_RELOAD_PERIOD_S = 5.0
# A file that has changed is taken once it stays as it is for so long.
_SETTLE_S = 1.0
_REPORT_PERIOD_S = 60.0
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
        count_refusal: Callable[[str], None] = lambda door: None,
    ) -> None:
        """Reads the file.

        Args:
            keys: Keys that stay.
            key_file: Further ones, which may change; None = none.
            clock: Unix time, in seconds.
            count_refusal: Takes the door of every request that is refused.

        Raises:
            InvalidArgumentError: The file cannot be used.
        """
        self._fixed = tuple(keys)
        self._file = key_file
        self._clock = clock
        self._count_refusal = count_refusal
        self._refusals: Counter[str] = Counter()
        self._next_report_s = 0.0
        self._unsettled: tuple[int, ...] | None = None
        self._stamp: tuple[int, ...] = ()
        self._by_digest = {one.digest: one for one in self._fixed}
        if key_file is not None:
            self._stamp = _stamp(key_file)
            self._take(read_key_file(key_file))

    @classmethod
    def from_config(
        cls, settings: ControllerConfig, count_refusal: Callable[[str], None] = lambda door: None
    ) -> Self:
        """Makes the one of a configuration.

        Args:
            settings: Of the controller.
            count_refusal: Takes the door of every request that is refused.

        Raises:
            InvalidArgumentError: The key file cannot be used.
        """
        named = [
            ApiKey(f"key-{one.removeprefix('sha256:')[:_NAME_DIGITS]}", one)
            for one in settings.api_keys
        ]
        return cls(named, settings.api_keys_file, count_refusal=count_refusal)

    @property
    def asks(self) -> bool:
        """Returns whether a key is needed at all."""
        return bool(self._fixed) or self._file is not None

    def announce(self) -> None:
        """Says in the log whether keys are asked for."""
        if self.asks:
            _log.info("requests need an API key; %d are let in", len(self._by_digest))
        else:
            _log.info("no API keys are configured: every request is let in")

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

    def note_refusal(self, door: str) -> None:
        """Counts a request that `admit` refused; the log hears of them once a minute at most.

        Args:
            door: ``http`` or ``grpc``.
        """
        self._count_refusal(door)
        self._refusals[door] += 1
        if (now_s := self._clock()) >= self._next_report_s:
            self._next_report_s = now_s + _REPORT_PERIOD_S
            counts = ", ".join(f"{name} {count}" for name, count in sorted(self._refusals.items()))
            _log.warning("requests refused for want of a known API key, by door: %s", counts)

    def reload(self) -> bool:
        """Reads the file again if it has changed; what cannot be used changes nothing.

        A file that is being written or replaced must not lock everybody out; one without keys does.
        So a change counts at the second look that finds the same one.

        Returns:
            Whether to look again soon: the file has changed and may still be changing.
        """
        if self._file is None:
            return False
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            self._unsettled = None
            return False
        if stamp != self._unsettled:
            self._unsettled = stamp
            return True
        try:
            keys = read_key_file(self._file)
        except ArboristError as error:
            if self._moved_on(stamp):
                return True
            _log.error("the keys stay as they were: %s", error.message)
        else:
            if self._moved_on(stamp):
                return True
            self._take(keys)
            _log.info("API keys read again: %d", len(self._by_digest))
        self._stamp, self._unsettled = stamp, None
        return False

    async def follow(self) -> None:
        """Keeps up with the file until it is cancelled."""
        changing = False
        while self._file is not None:
            await asyncio.sleep(_SETTLE_S if changing else _RELOAD_PERIOD_S)
            try:
                changing = await asyncio.to_thread(self.reload)
            except Exception:  # noqa: BLE001 - whatever it was, keys can still be revoked later
                _log.exception("the API keys could not be read again")

    def _moved_on(self, stamp: tuple[int, ...]) -> bool:
        """Returns whether the file is no longer the one of the stamp, and notes what it is."""
        self._unsettled = _stamp(self._file) if self._file is not None else ()
        return self._unsettled != stamp

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
