"""Replays a recorded trace of the official EAGLE code with this repository's draft and core."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from arborist.core.accept import accept
from arborist.core.engine import DraftEngine, DraftOpen, Expand, Extend, SessionKey
from arborist.core.policy import Eagle2Policy
from arborist.core.shape import TreeShape
from arborist.core.tree import DraftTree, Level, VerifyTree, ancestor_mask

SCORE_TOLERANCE = 1e-5
TIE_GAP = 2e-5


@dataclass(frozen=True)
class Trace:
    """A recorded file: the shape in our words, and its cases."""

    shape: TreeShape
    cases: list[dict[str, Any]]


def read_trace(path: Path) -> Trace:
    """Reads a file of recorded cases; the official numbers become ours (see README.md)."""
    recorded = json.loads(path.read_text(encoding="utf-8"))
    setting = recorded["meta"]["setting"]
    shape = TreeShape(
        depth=setting["depth"] + 1,
        top_k=setting["top_k"],
        num_draft_tokens=setting["total_token"] - 1,
    )
    return Trace(shape, recorded["cases"])


class PlainTarget:
    """The target through transformers, recomputing everything: no cache that could be wrong.

    Features are the states after the final norm, or the inputs of `layers` side by side.
    """

    def __init__(self, path: Path, layers: tuple[int, ...] | None = None) -> None:
        self.layers = layers
        self.model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    @torch.inference_mode()
    def run(
        self, committed: list[int], tokens: list[int], parents: list[int]
    ) -> tuple[list[int], Tensor]:
        """Returns the argmax after each of the last committed token and the nodes, and features.

        Features are those of every committed token and node, in that order.
        """
        length, count = len(committed), len(tokens)
        seen = np.tril(np.ones((length + count, length + count), dtype=bool))
        seen[length:, length:] = ancestor_mask(parents)[1:, 1:]
        mask = torch.where(torch.from_numpy(seen), 0.0, torch.finfo(torch.float32).min)
        depths = VerifyTree(tokens, parents, [], []).depths[1:]
        positions = [*range(length), *(length - 1 + depth for depth in depths)]
        output = self.model.model(
            input_ids=torch.tensor([committed + tokens]),
            attention_mask=mask[None, None],
            position_ids=torch.tensor([positions]),
            use_cache=False,
            output_hidden_states=True,
        )
        states = output.last_hidden_state[0]
        logits = self.model.lm_head(states[length - 1 :])
        if self.layers is not None:
            states = torch.cat([output.hidden_states[layer][0] for layer in self.layers], -1)
        return logits.argmax(-1).tolist(), states


@dataclass
class Replay:
    """What a replayed case gave.

    Attributes:
        output: Committed tokens after the prompt, without the pending root.
        num_rounds: Rounds run.
        num_ties: Rounds whose tree may differ because a cut was closer than TIE_GAP.
    """

    output: list[int]
    num_rounds: int
    num_ties: int


def draft_tree(
    draft: DraftEngine, session: SessionKey, begin: int, tokens: list[int], features: Tensor, shape
) -> DraftTree:
    """Extends the session and expands level by level, as the controller does."""
    policy = Eagle2Policy(shape)
    (level,) = draft.run([Extend(session, begin, tokens, features, shape.top_k)])
    assert isinstance(level, Level), level
    tree = DraftTree(level)
    while (frontier := policy.frontier(tree)) is not None:
        (level,) = draft.run([Expand(session, frontier.tolist(), shape.top_k)])
        assert isinstance(level, Level), level
        tree.grow(frontier, level)
    return tree


def replay(
    case: dict[str, Any], shape: TreeShape, target: PlainTarget, draft: DraftEngine
) -> Replay:
    """Runs a case round by round and asserts that every round is the recorded one."""
    session = ("golden", str(case["id"]))
    prompt: list[int] = case["prompt"]
    draft.open(session, DraftOpen(max_length=len(case["prompt"]) + len(case["output"]) + 32))
    (root,), features = target.run(prompt, [], [])
    committed, num_pairs, ties = [*prompt, root], 0, 0
    for index, recorded in enumerate(case["rounds"]):
        where = f"case {case['id']} round {index}"
        assert len(committed) - 1 == recorded["prefix_len"], where
        pairs = features[-(len(committed) - 1 - num_pairs) :]
        tree = draft_tree(draft, session, num_pairs, committed[num_pairs + 1 :], pairs, shape)
        num_pairs = len(committed) - 1
        chosen = Eagle2Policy(shape).select(tree)
        ties += check_round(tree, chosen, recorded, where)
        node_tokens, all_features = target.run(committed, chosen.tokens, chosen.parent_indices)
        outcome = accept(chosen.tokens, chosen.parent_indices, node_tokens)
        accepted_tokens = [chosen.tokens[node - 1] for node in outcome.accepted_nodes]
        assert [committed[-1], *accepted_tokens] == recorded["accepted_tokens"], where
        assert len(accepted_tokens) == recorded["accept_length"], where
        assert outcome.bonus == recorded["next_root"], where
        if chosen.tokens == recorded["tokens"][1:]:
            assert node_tokens == recorded["target_argmax"], where
            assert [0, *outcome.accepted_nodes] == recorded["accepted_nodes"], where
        rows = [len(committed) - 1 + node for node in (0, *outcome.accepted_nodes)]
        features = all_features[rows]
        committed += [*accepted_tokens, outcome.bonus]
    draft.release(session)
    return Replay(committed[len(prompt) : -1], len(case["rounds"]), ties)


def check_round(tree: DraftTree, chosen: VerifyTree, recorded: dict[str, Any], where: str) -> bool:
    """Asserts that the tree is the recorded one; returns whether only up to a tie."""
    assert len(tree) == recorded["pool_size"], where
    close = min(recorded["rerank_margin"], recorded["expand_margin"]) < TIE_GAP
    ours = sorted(chosen.scores, reverse=True)
    theirs = sorted(recorded["scores"][1:], reverse=True)
    np.testing.assert_allclose(ours, theirs, atol=TIE_GAP if close else SCORE_TOLERANCE, rtol=0)
    same = (
        chosen.tokens == recorded["tokens"][1:]
        and chosen.parent_indices == recorded["parents"][1:]
        and chosen.pool_indices == recorded["pool_index"]
    )
    if not same:
        assert close, f"{where}: the tree differs and no cut is close to a tie"
        return True
    assert chosen.depths == recorded["depths"], where
    np.testing.assert_allclose(
        chosen.scores, recorded["scores"][1:], atol=SCORE_TOLERANCE, rtol=0, err_msg=where
    )
    return False
