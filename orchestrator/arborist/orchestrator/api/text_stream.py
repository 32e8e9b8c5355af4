"""Tokens to text while they come: whatever is handed out is final.

Text is exactly `tokenizer.decode(all delivered tokens)`, in pieces, cut before the first stop
string. Three things are held back until they are certain: a trailing incomplete UTF-8 sequence, a
run of byte-fallback tokens, and a suffix that could begin a stop string.

A stop string ends the output with the token that completes it (or makes it certain): that token
and those before it are delivered and counted; the stop string and what follows it are not part of
the text. Stops are looked for after each single token, so where they cut does not depend on how
tokens fall into rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextDecoder(Protocol):
    """What turns whole lists of ids into text; `Tokenizer` does."""

    @property
    def byte_ids(self) -> frozenset[int]:
        """Returns the ids of byte-fallback tokens."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """Returns the ids that have no text."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of token ids."""
        ...


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What pushing tokens gave.

    Attributes:
        num_tokens: How many of the pushed tokens are delivered; fewer only when stopped.
        text: Text that became final.
        stopped: Whether a stop string appeared; nothing may be pushed after that.
    """

    num_tokens: int
    text: str
    stopped: bool


class TextStream:
    """Text of one output."""

    def __init__(self, decoder: TextDecoder | None, stop: Sequence[str] = ()) -> None:
        """Starts an empty output.

        Args:
            decoder: The model's tokenizer; None = a model of token ids only, whose text is empty.
            stop: Strings to end before, none of them empty.
        """
        self._detokenizer = Detokenizer(decoder) if decoder is not None else None
        self._stop = StopMatcher(stop)

    def push(self, token_ids: Sequence[int], *, last: bool) -> TextDelta:
        """Adds the tokens of a round.

        Args:
            token_ids: Committed tokens, in order.
            last: Whether the output ends with them: then nothing is held back.
        """
        if self._detokenizer is None:
            return TextDelta(len(token_ids), "", stopped=False)
        text = ""
        if not self._stop.active:
            text = self._stop.push(self._detokenizer.push(token_ids))
        else:
            for count, token in enumerate(token_ids, start=1):
                text += self._stop.push(self._detokenizer.push((token,)))
                if self._stop.found:
                    return TextDelta(count, text, stopped=True)
        if last:
            text += self.flush()
        return TextDelta(len(token_ids), text, stopped=self._stop.found)

    def flush(self) -> str:
        """Returns what was held back: no further token will come."""
        if self._detokenizer is None or self._stop.found:
            return ""
        return self._stop.push(self._detokenizer.flush()) + self._stop.flush()


class Detokenizer:
    """Decodes token by token what `decode` gives for the whole.

    Only a window is decoded again: the tokens of the last piece handed out, which give the next
    ones their context (a leading space is dropped at the start of a text only), and those after it.
    """

    def __init__(self, decoder: TextDecoder) -> None:
        self._decoder = decoder
        # Neither ends a run of byte-fallback tokens: special tokens vanish before decoding.
        self._undecided = decoder.byte_ids | decoder.special_ids if decoder.byte_ids else None
        self._window: list[int] = []
        self._num_context = 0
        self._given = 0
        """Characters of the window's text handed out."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Adds tokens and returns the text that is now final."""
        self._window.extend(token_ids)
        end = len(self._window)
        if self._undecided is not None:
            while end > self._num_context and self._window[end - 1] in self._undecided:
                end -= 1
        if end == self._num_context:
            return ""
        text = self._decoder.decode(self._window[:end])
        complete = not text.endswith(_REPLACEMENT)
        piece = text[self._given :] if complete else text[self._given : -1]
        self._given += len(piece)
        if complete and piece:
            self._advance(end)
        return piece

    def flush(self) -> str:
        """Returns the rest, with U+FFFD for what stayed incomplete."""
        text = self._decoder.decode(self._window)
        piece = text[self._given :]
        self._given = len(text)
        return piece

    def _advance(self, end: int) -> None:
        """Makes the tokens up to `end`, all of them handed out, the context of what follows."""
        self._window = self._window[self._num_context :]
        self._num_context = end - self._num_context
        self._given = len(self._decoder.decode(self._window[: self._num_context]))


class StopMatcher:
    """Cuts text before the first stop string and holds back what could begin one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found = False

    @property
    def active(self) -> bool:
        """Returns whether there is anything to look for."""
        return bool(self._stop)

    def push(self, text: str) -> str:
        """Adds text and returns what is now certain; sets `found`."""
        if not self._stop:
            return text
        self._held += text
        starts = [start for one in self._stop if (start := self._held.find(one)) >= 0]
        if starts:
            self.found = True
            certain, self._held = self._held[: min(starts)], ""
            return certain
        keep = max(_overlap(self._held, one) for one in self._stop)
        split = len(self._held) - keep
        certain, self._held = self._held[:split], self._held[split:]
        return certain

    def flush(self) -> str:
        """Returns what was held back."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
