"""Log-probs of a chat choice."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel

from arborist.core.logprobs import TokenLogprobs
from arborist.orchestrator.api.openai.token_label import TokenLabels


class ChatTopLogprob(BaseModel):
    """One of the most probable tokens."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(ChatTopLogprob):
    """A token of the output."""

    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probs in the order of the tokens."""

    content: list[ChatTokenLogprob]
    refusal: None = None


def chat_logprobs(tokens: Iterable[TokenLogprobs], labels: TokenLabels) -> ChatLogprobs:
    """Returns the log-probs of tokens as chat choices have them."""
    return ChatLogprobs(
        content=[
            ChatTokenLogprob(
                token=labels.text(one.token_id),
                logprob=one.logprob,
                bytes=list(labels.bytes(one.token_id)),
                top_logprobs=[
                    ChatTopLogprob(
                        token=labels.text(token), logprob=value, bytes=list(labels.bytes(token))
                    )
                    for token, value in one.top
                ],
            )
            for one in tokens
        ]
    )
