"""Decodes prompts in this process and hands out every round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from arborist.cli.local import LocalModel
from arborist.cli.trace.prompts import TracePrompt
from arborist.cli.trace.traced_round import TracedRound
from arborist.cli.trace.watched_policy import WatchedPolicy
from arborist.client.completion import Completion
from arborist.core.errors import InvalidArgumentError
from arborist.core.policy import TreePolicy
from arborist.orchestrator.api.incoming import IncomingRequest, TokenPrompt
from arborist.orchestrator.generation import SpeculationOptions
from arborist.orchestrator.round import Round


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """How prompts are decoded; greedily, always.

    Attributes:
        max_tokens: Most tokens per output; None = the configured default.
        ignore_eos: Go on after end-of-sequence tokens.
        speculation: Policy and shape of the tree; None in it = the configured default.
    """

    max_tokens: int | None = None
    ignore_eos: bool = False
    speculation: SpeculationOptions = field(default_factory=SpeculationOptions)


def trace(
    model: LocalModel,
    prompt: TracePrompt,
    options: TraceOptions,
    on_round: Callable[[TracedRound], None],
) -> Completion:
    """Decodes a prompt with the loop that serves.

    Args:
        model: Loaded with `want_node_tokens`.
        prompt: What to continue.
        options: How.
        on_round: Called with every round after the prefill, as it is committed.
    Returns:
        The output and its figures.
    Raises:
        InvalidArgumentError: The prompt or an option is refused; the message names the prompt.
        ArboristError: The models failed.
    """
    watched: list[WatchedPolicy] = []

    def watch(policy: TreePolicy) -> TreePolicy:
        watched.append(WatchedPolicy(policy))
        return watched[-1]

    def take(round_: Round) -> None:
        if round_.round_index >= 0:  # The prefill drafts and verifies nothing.
            expanded = watched[-1].expanded if watched else []
            on_round(TracedRound.of(prompt.id, round_, expanded))

    request = IncomingRequest(
        TokenPrompt(prompt.prompt_ids),
        max_tokens=options.max_tokens,
        ignore_eos=options.ignore_eos,
        speculation=options.speculation,
    )
    try:
        return model.complete(request, on_round=take, watch=watch)
    except InvalidArgumentError as error:
        detail = error.metadata
        raise InvalidArgumentError(
            f"prompt {prompt.id}: {detail['field']}", detail["value"], detail["limit"]
        ) from error
