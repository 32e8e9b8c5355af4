"""Which tokens a session has seen and how often it has put out each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens seen along several paths; T = distinct tokens of all of them.

    Attributes:
        token_ids: int64, shape (T,), distinct.
        num_output: float32, shape (rows, T); occurrences in the output, path included.
        seen: bool, shape (rows, T); whether prompt, output or path has it.
    """

    token_ids: npt.NDArray[np.int64]
    num_output: npt.NDArray[np.float32]
    seen: npt.NDArray[np.bool_]


class TokenHistory:
    """The tokens of one session up to its root, counted apart in prompt and output."""

    def __init__(self, prompt_length: int) -> None:
        """Starts empty.

        Args:
            prompt_length: Tokens appended first that are prompt; what follows is output.
        """
        self._prompt_length = prompt_length
        self._length = 0
        self._column: dict[int, int] = {}
        self._num_output: list[int] = []

    def __len__(self) -> int:
        """Returns the tokens appended."""
        return self._length

    def append(self, tokens: Sequence[int]) -> None:
        """Adds tokens at the end; whether they are prompt or output follows from their places."""
        for position, token in enumerate(tokens, start=self._length):
            column = self._column.setdefault(token, len(self._num_output))
            if column == len(self._num_output):
                self._num_output.append(0)
            self._num_output[column] += position >= self._prompt_length
        self._length += len(tokens)

    def counts(self, paths: Sequence[Sequence[int]]) -> TokenCounts:
        """Counts along paths that continue the history; the history stays as it is.

        Args:
            paths: Per row the tokens behind the history, oldest first.
        """
        known = len(self._num_output)
        columns: dict[int, int] = {}  # Of tokens that only paths have.
        places: list[tuple[int, int, int]] = []
        for row, path in enumerate(paths):
            for position, token in enumerate(path, start=self._length):
                column = self._column.get(token)
                if column is None:
                    column = columns.setdefault(token, known + len(columns))
                places.append((row, column, position >= self._prompt_length))
        total = known + len(columns)
        num_output = np.zeros((len(paths), total), dtype=np.float32)  # [R, T]
        num_output[:, :known] = self._num_output
        seen = np.zeros((len(paths), total), dtype=np.bool_)  # [R, T]
        seen[:, :known] = True
        if places:
            rows, cols, outputs = np.array(places, dtype=np.int64).T
            np.add.at(num_output, (rows, cols), outputs.astype(np.float32))
            seen[rows, cols] = True
        token_ids = np.fromiter((*self._column, *columns), dtype=np.int64, count=total)
        return TokenCounts(token_ids, num_output, seen)
