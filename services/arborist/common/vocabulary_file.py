"""A list of token ids, most frequent first, from a file."""

from __future__ import annotations

import json
from pathlib import Path

from arborist.core.errors import InvalidArgumentError

_FIELD = "draft.vocabulary_file"


def read_vocabulary_file(path: Path, size: int | None = None) -> list[int]:
    """Reads a JSON list of token ids, as `arborist rank-vocab` writes it.

    Args:
        path: The file.
        size: Take so many of the first ids; None = all.
    Returns:
        Distinct ids >= 0, at least one.
    Raises:
        InvalidArgumentError: The file cannot be read, is no such list, or is shorter than size.
    """
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        limit = f"a file that can be read ({error.strerror})"
        raise InvalidArgumentError(_FIELD, path, limit) from None
    except ValueError:
        ids = None
    if not isinstance(ids, list) or not ids:
        raise InvalidArgumentError(_FIELD, path, "a JSON list of token ids")
    for index, one in enumerate(ids):
        if isinstance(one, bool) or not isinstance(one, int) or one < 0:
            raise InvalidArgumentError(f"{_FIELD}[{index}]", one, "a token id, 0 or more")
    if len(set(ids)) != len(ids):
        raise InvalidArgumentError(_FIELD, path, "a list without repeated ids")
    if size is not None and size > len(ids):
        raise InvalidArgumentError(
            "draft.vocabulary_size", size, f"at most {len(ids)}, the ids of {path}"
        )
    return ids[:size]
