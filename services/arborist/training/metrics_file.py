"""What a run measured, one JSON object a line, in the order of steps."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

METRICS = "log.jsonl"


class MetricsFile:
    """A file that grows by lines; a resumed run drops what it will write again."""

    def __init__(self, path: Path) -> None:
        """Touch nothing yet.

        Args:
            path: file, made with the first entry.
        """
        self._path = path

    def add(self, entry: Mapping[str, object]) -> None:
        """Append an entry, which holds its ``step``."""
        with self._path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry) + "\n")

    def drop_after(self, step: int) -> None:
        """Leave out entries of later steps, and a last line that a crash cut off."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry["step"] <= step:
                kept.append(line + "\n")
        fresh = self._path.with_name(self._path.name + ".new")
        fresh.write_text("".join(kept), encoding="utf-8")
        os.replace(fresh, self._path)
