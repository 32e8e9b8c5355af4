"""A static tree from a file."""

from __future__ import annotations

import json
from pathlib import Path

from arborist.core.errors import InvalidArgumentError
from arborist.core.tree_paths import TreePaths


def read_tree_file(path: Path) -> TreePaths:
    """Reads a JSON list of paths of child ranks, as EAGLE-1 and Medusa write them.

    Args:
        path: For example ``[[0], [1], [0, 0]]``: two children of the root, one grandchild.
    Raises:
        InvalidArgumentError: The file cannot be read or is no tree; names file and fault.
    """
    try:
        paths = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        limit = f"a file that can be read ({error.strerror})"
        raise InvalidArgumentError("speculation.tree_file", path, limit) from None
    except ValueError:
        paths = None
    if not isinstance(paths, list):
        raise InvalidArgumentError("speculation.tree_file", path, "a JSON list of lists of ranks")
    try:
        return TreePaths(paths)
    except InvalidArgumentError as error:
        details = error.metadata
        raise InvalidArgumentError(
            f"speculation.tree_file, {details['field']}", details["value"], details["limit"]
        ) from None
