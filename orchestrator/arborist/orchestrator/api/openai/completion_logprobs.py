"""Log-probs of a completion's choice."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel

from arborist.core.logprobs import TokenLogprobs
from arborist.orchestrator.api.openai.token_label import TokenLabels


class CompletionLogprobs(BaseModel):
    """Four lists, one entry per token.

    Attributes:
        tokens: Text of each token.
        token_logprobs: Its natural-log probability.
        top_logprobs: The most probable tokens by their text, and the token itself.
        text_offset: Where its text begins, in characters from the start of the output.
    """

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionLogprobsWriter:
    """Writes the log-probs of one choice, round by round."""

    def __init__(self, labels: TokenLabels) -> None:
        """Begins at the start of the output."""
        self._labels = labels
        self._offset = 0

    def write(self, tokens: Iterable[TokenLogprobs]) -> CompletionLogprobs:
        """Returns the log-probs of the next tokens."""
        written = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for one in tokens:
            text = self._labels.text(one.token_id)
            # Tokens of one text are told once, with the probability of the likelier.
            top: dict[str, float] = {}
            for token, value in one.top:
                top.setdefault(self._labels.text(token), value)
            top.setdefault(text, one.logprob)
            written.tokens.append(text)
            written.token_logprobs.append(one.logprob)
            written.top_logprobs.append(top)
            written.text_offset.append(self._offset)
            self._offset += len(text)
        return written
