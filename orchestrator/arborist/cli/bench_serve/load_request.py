"""One request of a load, decided before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from arborist.client.prompt import Prompt, Speculation

CancelPhase: TypeAlias = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Cancel:
    """When its client leaves.

    Attributes:
        phase: prefill = before the first token, decode = after some tokens.
        share: How far into the phase, in [0, 1): of the time others wait for their first token,
            or of max_tokens.
    """

    phase: CancelPhase
    share: float


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What one client asks for.

    Attributes:
        index: From 0, in the order of sending.
        prompt: Text, token ids or messages.
        max_tokens: Most tokens of the output.
        temperature: 0 = greedy.
        seed: 64-bit seed; None when greedy.
        speculation: Drafting; None = the server's default.
        ignore_eos: Do not end at end-of-sequence tokens.
        timeout_s: Deadline of the request, in seconds.
        cancel: When its client leaves; None = it stays.
    """

    index: int
    prompt: Prompt
    max_tokens: int
    temperature: float
    seed: int | None
    speculation: Speculation | None
    ignore_eos: bool
    timeout_s: float
    cancel: Cancel | None = None
