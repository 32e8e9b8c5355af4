"""Where this user's caches lie."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """Returns our folder below the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The standard says: a relative path is to be ignored.
    root = Path(given) if Path(given).is_absolute() else Path.home() / ".cache"
    return root / "arborist"
