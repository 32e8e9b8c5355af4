"""Constrained output: which tokens may be drawn at each node of a tree, along its own path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from arborist.core.errors import InvalidArgumentError, SessionFailedError
from arborist.core.schema_text import RESPONSE_FORMAT

_ALL_BITS = 0xFF


class Matcher(Protocol):
    """A compiled grammar and where in it an output stands; llguidance's LLMatcher is one."""

    def try_consume_tokens(self, tokens: list[int]) -> int:
        """Takes tokens up to the first one that must not come; returns how many.

        An end token counts, or does not, where nothing else could come.
        """
        ...

    def rollback(self, num_tokens: int) -> bool:
        """Gives back the last tokens taken."""
        ...

    def compute_bitmask(self) -> bytes:
        """Returns one bit per token id, lowest first: whether it may come next."""
        ...

    def get_error(self) -> str:
        """Returns why the matcher broke down, which it never leaves; empty = it did not."""
        ...

    def deep_copy(self) -> Matcher:
        """Returns another one at the same place."""
        ...


class Grammar:
    """The grammar of one session: a function of prompt length and committed tokens alone."""

    def __init__(self, start: Matcher, prompt_length: int) -> None:
        """Starts before the prompt.

        Args:
            start: At the start of an output; it stays there, so sessions may share it.
            prompt_length: Tokens appended first that are prompt; the grammar does not see them.
        """
        self._start = start
        self._matcher = start.deep_copy()
        self._prompt_length = prompt_length
        self._length = 0
        self._output: list[int] = []
        self._forbidden = False

    def __len__(self) -> int:
        """Returns the tokens appended."""
        return self._length

    def append(self, tokens: Sequence[int]) -> None:
        """Adds committed tokens; what the grammar forbids ends the session at its next mask."""
        output = self._output_of(tokens)
        self._consume(output)
        self._output += output
        self._length += len(tokens)

    def masks(self, paths: Sequence[Sequence[int]]) -> npt.NDArray[np.uint8]:
        """Returns what may be drawn behind each path; the grammar stays where it is.

        Args:
            paths: Per row the tokens behind those appended, oldest first; the shortest one is
                committed.
        Returns:
            Shape (rows, bytes); bit v of a row, lowest first, says whether token v may be drawn.
            All bits are set in rows that no output reaches, because their paths are forbidden.
        Raises:
            InvalidArgumentError: The matcher came to a limit of its own. Fewer paths may do: what
                was not committed is as if it had never been asked for.
            SessionFailedError: What is committed is forbidden.
        """
        outputs = [self._output_of(path) for path in paths]
        masks: list[bytes | None] = [None] * len(paths)
        walk = _Walk(self._matcher)
        # In the order of a walk down the tree, each node next to its parent.
        for row in sorted(range(len(paths)), key=outputs.__getitem__):
            masks[row] = walk.mask(outputs[row])
        walk.back()
        if reason := self._matcher.get_error():
            self._restart()
            limit = f"one whose masks can be computed: {one_line(reason)}"
            raise InvalidArgumentError(RESPONSE_FORMAT, "a schema", limit)
        if self._forbidden or masks[min(range(len(paths)), key=lambda at: len(paths[at]))] is None:
            self._forbidden = True
            raise SessionFailedError("the grammar failed: it forbids a committed token")
        return _as_rows(masks)

    def _consume(self, output: list[int]) -> None:
        if self._matcher.try_consume_tokens(output) < len(output):
            # Its own limits are another matter, see `masks`.
            self._forbidden = not self._matcher.get_error()

    def _restart(self) -> None:
        """Leaves a matcher that broke down, which it stays, for a new one at the same place."""
        self._matcher = self._start.deep_copy()
        self._consume(self._output)

    def _output_of(self, tokens: Sequence[int]) -> list[int]:
        """Returns the part of what follows the appended tokens that is output."""
        return list(tokens[max(self._prompt_length - self._length, 0) :])


class _Walk:
    """Moves a matcher from path to path and asks it there."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._path: list[int] = []
        self._masks: list[bytes | None] = [None]  # Behind each prefix of the path, where asked.

    def mask(self, path: list[int]) -> bytes | None:
        """Goes to a path; returns its mask, or None when no output gets there."""
        common = self.back(path)
        if common < len(path):
            # Most drafted tokens are told apart by their parent's mask, which is there already.
            above = self._masks[common]
            if above is not None and not _allows(above, path[common]):
                return None
            count = self._matcher.try_consume_tokens(path[common:])
            self._path += path[common : common + count]
            self._masks += [None] * count
            if len(self._path) < len(path):
                return None
        if self._masks[-1] is None:
            self._masks[-1] = self._matcher.compute_bitmask()
        return self._masks[-1]

    def back(self, path: Sequence[int] = ()) -> int:
        """Goes back to what a path has in common with the place; returns its length."""
        common = _common_length(self._path, path)
        if common < len(self._path):
            self._matcher.rollback(len(self._path) - common)
            del self._path[common:], self._masks[common + 1 :]
        return common


def mask_logits(scores: Tensor, masks: npt.NDArray[np.uint8]) -> None:
    """Excludes the tokens that masks forbid, in place.

    Args:
        scores: float, shape (rows, vocab).
        masks: Of the same rows, as `Grammar.masks` returns them, at least vocab bits wide.
    """
    scores.masked_fill_(~_unpacked(masks, scores.shape[-1], scores.device), -math.inf)


def _unpacked(masks: npt.NDArray[np.uint8], vocab_size: int, device: torch.device) -> Tensor:
    """Returns masks as bool, shape (rows, vocab)."""
    if device.type == "cpu":
        bits = np.unpackbits(masks, axis=1, count=vocab_size, bitorder="little")
        return torch.from_numpy(bits).view(torch.bool)
    # They travel packed.
    packed = torch.from_numpy(masks).to(device)  # [R, B]
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    spread = (packed[:, :, None] >> shifts) & 1  # [R, B, 8]
    return spread.flatten(1)[:, :vocab_size].bool()


def one_line(reason: str, longest: int = 200) -> str:
    """Returns another library's words as they may stand in a one-line message."""
    shown = (
        " ".join(reason.replace("<non-verbose/>", "").split())
        .encode("unicode_escape")
        .decode("ascii")
    )
    return shown if len(shown) <= longest else f"{shown[:longest]}…"


def _allows(mask: bytes, token: int) -> bool:
    return bool(mask[token >> 3] >> (token & 7) & 1)


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


def _as_rows(masks: Sequence[bytes | None]) -> npt.NDArray[np.uint8]:
    """Returns masks as rows; the shortest path always has one."""
    width = next(len(mask) for mask in masks if mask is not None)
    rows = np.full((len(masks), width), _ALL_BITS, dtype=np.uint8)  # [R, B]
    for row, mask in enumerate(masks):
        if mask is not None:
            rows[row] = np.frombuffer(mask, dtype=np.uint8)
    return rows
