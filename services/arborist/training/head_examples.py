"""Sequences a head is trained on: the target's own outputs, or records of text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arborist.training.chat_format import ChatFormat
from arborist.training.own_outputs import OwnOutput
from arborist.training.records import EncodedRecord, Record

TEXT_PROMPT_TOKENS = 48
"""Tokens of a plain text that make a prompt when something is to be decoded from it."""


@dataclass(frozen=True)
class HeadExample:
    """A sequence with the weight of each token as a label, and where its prompt ends."""

    encoded: EncodedRecord
    num_prompt_tokens: int

    def cut(self, max_tokens: int) -> HeadExample:
        """The first ``max_tokens`` of it."""
        ids, weights = self.encoded.token_ids[:max_tokens], self.encoded.loss_weights[:max_tokens]
        return HeadExample(EncodedRecord(ids, weights), min(self.num_prompt_tokens, max_tokens))

    @property
    def is_usable(self) -> bool:
        """Whether some token of it is a label: the first two never are."""
        return bool((self.encoded.loss_weights[2:] > 0).any())

    @property
    def prompt_ids(self) -> list[int]:
        """Token ids of the prompt."""
        return [int(one) for one in self.encoded.token_ids[: self.num_prompt_tokens]]


def example_of_output(output: OwnOutput) -> HeadExample:
    """Prompt and own output as one sequence; only the output's tokens count as labels."""
    first = len(output.prompt_ids)
    ids = np.asarray([*output.prompt_ids, *output.output_ids], dtype=np.int64)
    weights = np.zeros(len(ids), dtype=np.float32)
    # The first output token is the target's own; the head only ever predicts what follows it.
    weights[first + 1 :] = 1.0
    return HeadExample(EncodedRecord(ids, weights), first)


def example_of_record(record: Record, chat: ChatFormat) -> HeadExample:
    """A text, or a prompt with its response, as the target would read it; its end is a label.

    The prompt is encoded apart from the response, as at inference, so no token straddles both.
    """
    if record.output_ids:
        prompt, answer = list(record.prompt_ids), list(record.output_ids)
    elif record.response is None:
        prompt, answer = list(chat.begin), chat.encode(record.text)
    else:
        prompt, answer = chat.prompt_ids(record.text), chat.encode(record.response)
    ids = np.asarray([*prompt, *answer, *chat.end], dtype=np.int64)
    weights = np.ones(len(ids), dtype=np.float32)
    weights[: len(prompt)] = 0.0
    num_prompt_tokens = len(prompt)
    if record.response is None and not record.output_ids:
        num_prompt_tokens = min(len(prompt) + TEXT_PROMPT_TOKENS, max(1, len(ids) // 2))
    return HeadExample(EncodedRecord(ids, weights), num_prompt_tokens)
