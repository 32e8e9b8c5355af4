"""One round as `arborist trace` writes it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TypeAlias

from arborist.orchestrator.round import Round

PromptId: TypeAlias = str | int

# As many as the official traces have; scores compare within 1e-5.
_SCORE_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class TracedRound:
    """One round; the field names are the keys of a line.

    Per-node lists have the root first, then the drafted nodes in the order of the pool.

    Attributes:
        id: Of the prompt.
        round_index: From 0.
        prefix_len: Tokens before the root, which is therefore the root's position.
        tokens: Token of every node.
        parents: Parent of every node; −1 for the root.
        depths: Depth of every node; 0 for the root.
        scores: Cumulative draft log-prob of every node; 0.0 for the root.
        expanded: Per level from the second on, its best candidates (see `WatchedPolicy`).
        accepted_nodes: The accepted path, the root first.
        bonus_token: Token the target supplied after that path; the next root.
        target_argmax: The target's token after every node.
    """

    id: PromptId
    round_index: int
    prefix_len: int
    tokens: list[int]
    parents: list[int]
    depths: list[int]
    scores: list[float]
    expanded: list[list[int]]
    accepted_nodes: list[int]
    bonus_token: int
    target_argmax: list[int]

    @classmethod
    def of(cls, prompt_id: PromptId, round_: Round, expanded: list[list[int]]) -> TracedRound:
        """Takes a round as the decode loop delivered it.

        Args:
            prompt_id: Whose round it is.
            round_: Not the prefill; with the target's token at every node.
            expanded: What the policy had expanded; ignored when no draft took part.
        """
        tree = round_.tree
        # Adding 0.0 turns a rounded −0.0 into 0.0.
        scores = [round(score, _SCORE_DECIMALS) + 0.0 for score in tree.scores]
        return cls(
            id=prompt_id,
            round_index=round_.round_index,
            prefix_len=round_.prefix_length - 1,
            tokens=[round_.root, *tree.tokens],
            parents=[-1, *tree.parent_indices],
            depths=tree.depths,
            scores=[0.0, *scores],
            expanded=expanded if round_.speculated else [],
            accepted_nodes=[0, *round_.accepted_nodes],
            bonus_token=round_.bonus,
            target_argmax=list(round_.node_tokens),
        )

    def line(self) -> str:
        """Returns it as one line of JSON, without the line's end."""
        return json.dumps(asdict(self), ensure_ascii=False)
