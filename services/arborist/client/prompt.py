"""What a client gives: a prompt and options of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        content: Text of the turn.
    """

    role: str
    content: str


Prompt: TypeAlias = str | Sequence[int] | Sequence[Message]
"""Text, token ids, or messages to render with the model's chat template."""


JsonSchema: TypeAlias = Mapping[str, object] | str
"""A JSON schema, as an object or as JSON text."""


@dataclass(frozen=True, slots=True)
class Speculation:
    """Drafting of one request; it never changes the output. None = the server's default.

    Attributes:
        enabled: Whether to draft.
        depth: Levels below the root, in [1, 16].
        top_k: Frontier width and children per node, in [1, 32].
        num_draft_tokens: Drafted nodes verified per round, in [1, 256].
        policy: How the tree is made: eagle2, eagle1_static, chain, dynamic_depth, ...
        adaptive: Whether eagle2's trees follow the load; None = as the server does, but not when
            a size is said.
    """

    enabled: bool | None = None
    depth: int | None = None
    top_k: int | None = None
    num_draft_tokens: int | None = None
    policy: str | None = None
    adaptive: bool | None = None
