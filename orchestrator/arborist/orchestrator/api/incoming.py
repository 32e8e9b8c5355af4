"""A completion request as it arrives, before anything in it is believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from arborist.orchestrator.generation import SpeculationOptions


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One message of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        content: Text of the turn.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text, tokenised as the model's tokenizer does by default."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids, used as they are."""

    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages, oldest first, rendered with the model's chat template."""

    turns: Sequence[ChatTurn]


@dataclass(frozen=True, slots=True)
class JsonObjectFormat:
    """Any JSON object."""


@dataclass(frozen=True, slots=True)
class JsonSchemaFormat:
    """JSON that fits a schema, given as text."""

    schema: str


ResponseFormat: TypeAlias = JsonObjectFormat | JsonSchemaFormat
Prompt: TypeAlias = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True)
class IncomingRequest:
    """What a client asked for, whatever door it came through; nothing here is checked.

    Attributes:
        prompt: What to continue; None = not given.
        model: Served name; empty = the only one.
        max_tokens: Most tokens to generate; None = the server's default.
        temperature: 0 = greedy; None = 0.
        top_k: Keep the most probable tokens; 0 or None = all.
        top_p: Nucleus mass; None = 1.
        min_p: Minimum probability relative to the best token; None = 0.
        seed: 64-bit seed; None = the server draws one.
        stop: Strings the output ends before.
        speculation: On or off, and the tree's shape.
        ignore_eos: Do not end at end-of-sequence tokens.
        repetition_penalty: On tokens of prompt and output; None = 1, off.
        presence_penalty: On tokens of the output, once; None = 0, off.
        frequency_penalty: On tokens of the output, per occurrence; None = 0, off.
        logit_bias: Added to the logits of token ids.
        min_tokens: Tokens of output before which no end token may come; None = 0.
        stop_token_ids: Further tokens that end the output.
        num_logprobs: Most probable tokens listed with every token's log-probs; None = no log-probs.
        response_format: What the output must be; None = free text.
        traceparent: W3C trace context of the caller; empty = none.
        client_key: Whose request it is, as `client_key` says.
    """

    prompt: Prompt | None
    model: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    speculation: SpeculationOptions = field(default_factory=SpeculationOptions)
    ignore_eos: bool = False
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int | None = None
    stop_token_ids: Sequence[int] = ()
    num_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    traceparent: str = ""
    client_key: str = ""
