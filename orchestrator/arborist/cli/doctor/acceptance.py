"""Measured tau: prompts decoded greedily in this process, as a server would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from arborist.orchestrator.api.incoming import IncomingRequest, TokenPrompt

if TYPE_CHECKING:
    from arborist.cli.local import LocalModel


@dataclass(frozen=True, slots=True)
class DecodedPrompt:
    """One prompt and what the target made of it.

    Attributes:
        prompt_ids: Token ids of the prompt.
        output_ids: Token ids of the output.
        num_rounds: Rounds it took.
        num_accepted: Drafted tokens accepted in them.
    """

    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    num_rounds: int
    num_accepted: int


def decode(
    model: LocalModel, prompts: Sequence[Sequence[int]], max_tokens: int
) -> list[DecodedPrompt]:
    """Decodes prompts one by one.

    Args:
        model: Target and draft.
        prompts: Token ids of each.
        max_tokens: Most tokens per output.
    Raises:
        ArboristError: A prompt is too long, or the models failed.
    """
    decoded: list[DecodedPrompt] = []
    for ids in prompts:
        request = IncomingRequest(TokenPrompt(tuple(ids)), max_tokens=max_tokens)
        completion = model.complete(request)
        speculation = completion.summary.speculation
        decoded.append(
            DecodedPrompt(
                tuple(ids),
                tuple(completion.token_ids),
                speculation.rounds,
                speculation.accepted_tokens,
            )
        )
    return decoded


def tau_of(decoded: Sequence[DecodedPrompt]) -> float | None:
    """Returns the mean of accepted + 1 over all rounds; None = there was no round."""
    rounds = sum(one.num_rounds for one in decoded)
    return 1 + sum(one.num_accepted for one in decoded) / rounds if rounds else None
