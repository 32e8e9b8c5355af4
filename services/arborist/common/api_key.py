"""API keys as a server knows them: a name, a digest, an end; never the key itself."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from arborist.core.errors import InvalidArgumentError

MIN_KEY_LENGTH = 16
"""Shortest key, in characters: digests of short ones could be guessed."""

MAX_KEY_LENGTH = 512
_MAX_FILE_BYTES = 1 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_FIELD = "controller.api_keys_file"
_NAME_LIMIT = "1 to 64 of letters, digits, . _ @ and -"
_EXPIRY = "a date or time such as 2027-01-31, before the year 10000 in UTC"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key that is let in.

    Attributes:
        name: Whose it is; keys of one name are one client.
        digest: "sha256:" and 64 hex digits.
        expires_s: Unix time from which on it is refused; None = never.
    """

    name: str
    digest: str
    expires_s: float | None = None


def new_api_key() -> str:
    """Returns a new key of 256 random bits."""
    return f"arb-{secrets.token_urlsafe(32)}"


def key_digest(key: bytes) -> str:
    """Returns what is kept of a key; a fast hash is enough for one that nobody can guess."""
    return f"sha256:{hashlib.sha256(key).hexdigest()}"


def split_keys(text: str) -> list[str]:
    """Returns the keys of a text that has them with commas; there may be none."""
    return [one.strip() for one in text.split(",") if one.strip()]


def known_by_digest(text: str) -> str:
    """Returns the digest of a key, or a digest as it stands.

    Args:
        text: Either.
    Raises:
        ValueError: Neither; the message does not repeat it.
    """
    if _DIGEST.fullmatch(text):
        return text
    if not MIN_KEY_LENGTH <= len(text) <= MAX_KEY_LENGTH or not text.isascii():
        raise ValueError(
            f"a key must have {MIN_KEY_LENGTH} to {MAX_KEY_LENGTH} ASCII characters, or be given "
            "as sha256: and 64 hex digits"
        )
    return key_digest(text.encode())


def api_key_line(key: ApiKey) -> str:
    """Returns a key as a line of a key file."""
    parts = [key.name, key.digest]
    if key.expires_s is not None:
        parts.append(datetime.fromtimestamp(key.expires_s, UTC).isoformat())
    return " ".join(parts)


def check_key_name(field: str, name: str) -> str:
    """Returns the name.

    Raises:
        InvalidArgumentError: It is empty, too long, or has other characters.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgumentError(field, name[:64], _NAME_LIMIT)
    return name


def read_expiry(field: str, text: str) -> float:
    """Returns a date or time as Unix time.

    Args:
        field: Name for the message.
        text: ISO 8601; without a zone UTC, a date is its first moment.
    Raises:
        InvalidArgumentError: It is none, or in UTC of no year from 1 to 9999.
    """
    expires_s = _unix_time(text)
    if expires_s is None:
        raise InvalidArgumentError(field, text[:64], _EXPIRY)
    return expires_s


def read_key_file(path: Path) -> list[ApiKey]:
    """Reads the keys of a file: `NAME sha256:HEX [EXPIRES]` a line; `#` begins a comment.

    Args:
        path: UTF-8 text of 1 MiB at most.
    Raises:
        InvalidArgumentError: It cannot be read, or a line is malformed; nothing that could be a key
            is repeated.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise InvalidArgumentError(_FIELD, path, f"a file of at most {_MAX_FILE_BYTES} bytes")
        lines = content.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InvalidArgumentError(_FIELD, path, f"a file that can be read ({reason})") from None
    return list(_keys(lines))


def _keys(lines: Iterable[str]) -> Iterable[ApiKey]:
    for number, line in enumerate(lines, 1):
        columns = line.partition("#")[0].split()
        if not columns:
            continue
        where = f"{_FIELD} line {number}"
        if len(columns) not in (2, 3) or not _DIGEST.fullmatch(columns[1]):
            raise InvalidArgumentError(
                where, f"{len(columns)} columns", "NAME sha256:64-HEX-DIGITS [EXPIRES]"
            )
        # What stands in the wrong column may be a key: columns are named, not repeated.
        if not _NAME.fullmatch(columns[0]):
            raise InvalidArgumentError(where, "column 1", _NAME_LIMIT)
        expires_s = _unix_time(columns[2]) if len(columns) == 3 else None
        if expires_s is None and len(columns) == 3:
            raise InvalidArgumentError(where, "column 3", _EXPIRY)
        yield ApiKey(columns[0], columns[1], expires_s)


def _unix_time(text: str) -> float | None:
    """Returns a time of ISO 8601 as Unix time; None = it is none that UTC can express."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        # There and back: of the last seconds of all, some are none in UTC.
        return datetime.fromtimestamp(moment.timestamp(), UTC).timestamp()
    except (ValueError, OverflowError):
        return None
