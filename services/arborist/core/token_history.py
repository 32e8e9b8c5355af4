"""Which tokens a session has seen and how often it has put out each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_FIRST_COLUMNS = 64


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens seen along several paths: what all of them share, and what each adds to it.

    Kept apart because the first is long (T = distinct tokens of the history) and the same for every
    row, the second short (P = distinct tokens of each path, summed over the rows).

    Attributes:
        token_ids: int64, shape (T,), distinct; the history's.
        num_output: float32, shape (T,); occurrences in the history's output.
        path_rows: int64, shape (P,); the row that a path's token belongs to.
        path_token_ids: int64, shape (P,); distinct within a row.
        path_num_output: float32, shape (P,); occurrences in the output, history and path.
    """

    token_ids: npt.NDArray[np.int64]
    num_output: npt.NDArray[np.float32]
    path_rows: npt.NDArray[np.int64]
    path_token_ids: npt.NDArray[np.int64]
    path_num_output: npt.NDArray[np.float32]


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
        # With room for more; only the columns given out count.
        self._token_ids = np.zeros(_FIRST_COLUMNS, dtype=np.int64)
        self._num_output = np.zeros(_FIRST_COLUMNS, dtype=np.float32)

    def __len__(self) -> int:
        """Returns the tokens appended."""
        return self._length

    def append(self, tokens: Sequence[int]) -> None:
        """Adds tokens at the end; whether they are prompt or output follows from their places."""
        self._make_room(len(self._column) + len(tokens))
        for position, token in enumerate(tokens, start=self._length):
            column = self._column.setdefault(token, len(self._column))
            self._token_ids[column] = token
            if position >= self._prompt_length:
                self._num_output[column] += 1
        self._length += len(tokens)

    def counts(self, paths: Sequence[Sequence[int]]) -> TokenCounts:
        """Counts along paths that continue the history; the history stays as it is.

        Args:
            paths: Per row the tokens behind the history, oldest first.
        """
        known = len(self._column)
        added: dict[tuple[int, int], int] = {}
        for row, path in enumerate(paths):
            for position, token in enumerate(path, start=self._length):
                key = (row, token)
                added[key] = added.get(key, 0) + (position >= self._prompt_length)
        before = [self._column.get(token) for _, token in added]
        return TokenCounts(
            self._token_ids[:known].copy(),
            self._num_output[:known].copy(),
            np.fromiter((row for row, _ in added), np.int64, len(added)),
            np.fromiter((token for _, token in added), np.int64, len(added)),
            np.fromiter(
                (
                    count + (0.0 if column is None else self._num_output[column])
                    for count, column in zip(added.values(), before, strict=True)
                ),
                np.float32,
                len(added),
            ),
        )

    def _make_room(self, columns: int) -> None:
        missing = columns - len(self._token_ids)
        if missing > 0:
            grown = max(missing, len(self._token_ids))  # Doubled: each token moves rarely.
            self._token_ids = np.pad(self._token_ids, (0, grown))
            self._num_output = np.pad(self._num_output, (0, grown))
