"""What a token is called in a drawing."""

from __future__ import annotations

from arborist.orchestrator.api.tokenizer import Tokenizer

# Spaces that nobody would see in a box.
_VISIBLE = {" ": "·", "\n": "⏎", "\r": "␍", "\t": "⇥"}
_MAX_LENGTH = 14


class TokenLabels:
    """Names tokens by their text, or by their id where there is none."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        """Takes a tokenizer.

        Args:
            tokenizer: Of the target; None = ids only.
        """
        self._tokenizer = tokenizer

    def label(self, token: int) -> str:
        """Returns at most 14 printable characters."""
        text = self._tokenizer.decode([token]) if self._tokenizer is not None else ""
        if not text:  # No tokenizer, or a special token.
            return str(token)
        shown = "".join(_VISIBLE.get(one, one if one.isprintable() else "�") for one in text)
        return shown if len(shown) <= _MAX_LENGTH else f"{shown[: _MAX_LENGTH - 1]}…"
