"""Where the lines of a trace go."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from arborist.core.errors import InvalidArgumentError


class TraceOutput:
    """A file, or stdout; each line is there as soon as its round is."""

    def __init__(self, path: Path | None) -> None:
        """Opens the file, so that a run that cannot be written does not begin.

        Args:
            path: File to overwrite; None = stdout.
        Raises:
            InvalidArgumentError: It cannot be written.
        """
        self._path = path
        self._file = sys.stdout
        if path is not None:
            try:
                self._file = path.open("w", encoding="utf-8", buffering=1)
            except OSError as error:
                raise _unwritable(path, error) from None

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the file."""
        if self._path is not None:
            self._file.close()

    def write(self, line: str) -> None:
        """Writes one line.

        Raises:
            InvalidArgumentError: The file cannot be written any more.
            SystemExit: Nobody reads stdout any more (`| head`): nothing is left to do.
        """
        try:
            self._file.write(f"{line}\n")
            self._file.flush()
        except BrokenPipeError:
            # Python flushes stdout once more when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None
        except OSError as error:
            raise _unwritable(self._path or "stdout", error) from None


def _unwritable(path: Path | str, error: OSError) -> InvalidArgumentError:
    reason = error.strerror or "no reason given"
    return InvalidArgumentError("--out", path, f"a file that can be written ({reason})")
