"""What sessions with the same beginning share, and with whom they share it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

MAX_PREFIX_TOKENS = 65_536
"""Most tokens an Open names: their message stays below 256 KiB."""

MAX_SCOPE_LENGTH = 64
"""Longest scope, in characters."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Leading tokens of a session that a worker may have computed for an earlier one.

    Attributes:
        scope: Sessions share within one scope only; it stands for a tenant and whatever else
            must be alike. Opaque.
        tokens: Token ids from position 0 on; at most MAX_PREFIX_TOKENS.
    """

    scope: str
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, scope: str, tokens: list[int]) -> Prefix:
        """Returns a prefix of so many of these tokens as may be named."""
        return cls(scope, tuple(tokens[:MAX_PREFIX_TOKENS]))


def named_tokens(prefix: Prefix | None) -> int:
    """Returns how many tokens might be taken over."""
    return 0 if prefix is None else len(prefix.tokens)


def share_scope(*parts: str) -> str:
    """Returns the scope of sessions for which all these are alike, 64 characters.

    Args:
        parts: Whatever must be alike: the tenant, the model that features come from.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class PrefixCounts:
    """What a worker's prefix cache did since its start.

    Attributes:
        num_queried: Tokens that sessions might have taken over.
        num_hits: Tokens that they did take over.
        num_cached: Tokens held now.
        num_bytes: Memory set aside for them, used or not.
    """

    num_queried: int = 0
    num_hits: int = 0
    num_cached: int = 0
    num_bytes: int = 0
