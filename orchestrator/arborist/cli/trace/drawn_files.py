"""The SVG files of a run: one for all rounds, or a folder with one for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from arborist.cli.trace.drawing import draw_rounds
from arborist.cli.trace.traced_round import TracedRound
from arborist.core.errors import InvalidArgumentError

_SUFFIX = ".svg"


class DrawnFiles:
    """Where drawings go."""

    def __init__(self, path: Path) -> None:
        """Makes the folder or the file, so that a run that cannot be drawn does not begin.

        Args:
            path: A file if its name ends in .svg, else a folder, made if missing.
        Raises:
            InvalidArgumentError: It cannot be written.
        """
        self._path = path
        self._is_file = path.suffix.lower() == _SUFFIX
        try:
            if self._is_file:
                path.write_bytes(b"")
            else:
                path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from None

    @property
    def path(self) -> Path:
        """Returns the file or folder."""
        return self._path

    def write(self, prompts: Sequence[Sequence[TracedRound]], label: Callable[[int], str]) -> None:
        """Draws everything.

        Args:
            prompts: Rounds of each prompt.
            label: Names a token.
        Raises:
            InvalidArgumentError: It cannot be written.
        """
        try:
            if self._is_file:
                rounds = [one for traced in prompts for one in traced]
                self._path.write_text(draw_rounds(rounds, label), encoding="utf-8")
                return
            for number, traced in enumerate(prompts):
                for one in traced:
                    # Not the id: it may hold what no file name can.
                    name = f"{number:04d}-{one.round_index:04d}{_SUFFIX}"
                    drawn = draw_rounds([one], label)
                    (self._path / name).write_text(drawn, encoding="utf-8")
        except OSError as error:
            raise _unwritable(self._path, error) from None


def _unwritable(path: Path, error: OSError) -> InvalidArgumentError:
    reason = error.strerror or "no reason given"
    return InvalidArgumentError(
        "--draw", path, f"a file NAME.svg or a folder that can be written ({reason})"
    )
