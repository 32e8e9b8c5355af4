"""What a single token is called in log-probs."""

from __future__ import annotations

from arborist.orchestrator.api.tokenizer import Tokenizer


class TokenLabels:
    """Text and bytes of tokens; a model of token ids only has `token_id:7`."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        """Takes the model's tokenizer; None = it has none."""
        self._tokenizer = tokenizer

    def text(self, token_id: int) -> str:
        """Returns the text a token adds; special tokens have their name."""
        if self._tokenizer is None:
            return f"token_id:{token_id}"
        return self._tokenizer.token_text(token_id)

    def bytes(self, token_id: int) -> bytes:
        """Returns the bytes a token adds, exact also for part of a character."""
        if self._tokenizer is None:
            return self.text(token_id).encode()
        return self._tokenizer.token_bytes(token_id)
