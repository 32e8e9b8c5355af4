"""The head written out row by row in float64: no KV, no mask, no batch, no shared code."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from arborist.draft.head import HeadConfig


class NaiveHead:
    """One sequence in, one output per position out."""

    def __init__(self, config: HeadConfig, state: dict[str, Tensor]) -> None:
        self.config = config
        self.weights = {name: value.double().numpy() for name, value in state.items()}

    def linear(self, name: str, row: np.ndarray) -> np.ndarray:
        """Matrix times one row, plus the bias if there is one."""
        result = self.weights[f"{name}.weight"] @ row
        return result + self.weights.get(f"{name}.bias", 0.0)

    def norm(self, name: str, row: np.ndarray) -> np.ndarray:
        """Root-mean-square norm of one row."""
        scale = math.sqrt(float((row * row).mean()) + self.config.rms_norm_eps)
        return row / scale * self.weights[f"{name}.weight"]

    def rotate(self, row: np.ndarray, position: int) -> np.ndarray:
        """RoPE of one head: pair (i, i + half) is a complex number, turned by its angle."""
        half = self.config.head_dim // 2
        turn = np.array(
            [
                position / self.config.rope_linear_factor / self.config.rope_theta ** (i / half)
                for i in range(half)
            ]
        )
        turned = (row[:half] + 1j * row[half:]) * np.exp(1j * turn)
        return np.concatenate((turned.real, turned.imag))

    def run(
        self, embeddings: list[np.ndarray], features: list[np.ndarray], positions: list[int]
    ) -> list[np.ndarray]:
        """Returns the output at every position of a plain causal sequence."""
        states = [
            self.linear("fc", np.concatenate(pair))
            for pair in zip(embeddings, features, strict=True)
        ]
        for layer in range(self.config.num_layers):
            states = self.layer(f"layers.{layer}", layer > 0, states, positions)
        return states

    def layer(
        self, name: str, with_norm: bool, states: list[np.ndarray], positions: list[int]
    ) -> list[np.ndarray]:
        """One decoder layer."""
        normed = [self.norm(f"{name}.input_layernorm", x) if with_norm else x for x in states]
        width, groups = (
            self.config.head_dim,
            (self.config.num_attention_heads // self.config.num_key_value_heads),
        )
        q, k, v = (
            [self.linear(f"{name}.self_attn.{kind}_proj", x).reshape(-1, width) for x in normed]
            for kind in "qkv"
        )
        outputs = []
        for i, state in enumerate(states):
            heads = []
            for head in range(self.config.num_attention_heads):
                query = self.rotate(q[i][head], positions[i])
                scores = np.array(
                    [
                        query @ self.rotate(k[j][head // groups], positions[j]) / math.sqrt(width)
                        for j in range(i + 1)
                    ]
                )
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                heads.append(sum(w * v[j][head // groups] for j, w in enumerate(weights)))
            middle = state + self.linear(f"{name}.self_attn.o_proj", np.concatenate(heads))
            inner = self.norm(f"{name}.post_attention_layernorm", middle)
            gate = self.linear(f"{name}.mlp.gate_proj", inner)
            gate = gate / (1 + np.exp(-gate))
            outputs.append(
                middle
                + self.linear(
                    f"{name}.mlp.down_proj", gate * self.linear(f"{name}.mlp.up_proj", inner)
                )
            )
        return outputs


@dataclass
class NaiveNode:
    """A candidate: its token and the expanded node it hangs from; None = the last true pair."""

    token: int
    parent: NaiveNode | None


@dataclass
class NaiveDraft:
    """One session: recomputes every node's whole path from the first pair.

    `added` gives what is added to the logits of every token that may come to stand at a position.
    """

    head: NaiveHead
    embedding: np.ndarray
    lm_head: np.ndarray
    tokens: list[int] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    candidates: list[NaiveNode] = field(default_factory=list)
    added: Callable[[int], np.ndarray] = field(default=lambda position: np.zeros(1))

    def extend(self, tokens: list[int], features: Tensor) -> None:
        """Appends true pairs."""
        self.tokens += tokens
        self.features += list(features.double().cpu().numpy())
        self.candidates = []

    def outputs(self, path: list[int]) -> list[np.ndarray]:
        """Returns the head's outputs over the pairs and the nodes of one path."""
        tokens, features = list(self.tokens), list(self.features)
        for i in range(len(path) + 1):
            outputs = self.head.run(
                [self.embedding[token] for token in tokens], features, list(range(len(tokens)))
            )
            if i < len(path):
                tokens.append(path[i])
                features.append(outputs[-1])
        return outputs

    def children(self, node: NaiveNode | None, top_k: int) -> tuple[list[int], list[float]]:
        """Returns tokens and log-probs after a node, best first; None = after the pairs."""
        path: list[int] = []
        step = node
        while step is not None:
            path.insert(0, step.token)
            step = step.parent
        # The first token of all has no pair; then come the pairs' tokens, then the path's.
        position = 1 + len(self.tokens) + len(path)
        logits = self.lm_head @ self.outputs(path)[-1] + self.added(position)
        logprobs = logits - logits.max()
        logprobs = logprobs - math.log(np.exp(logprobs).sum())
        order = sorted(range(len(logprobs)), key=lambda token: (-logprobs[token], token))[:top_k]
        return order, [float(logprobs[token]) for token in order]

    def level(self, rows: list[int] | None, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns tokens and log-probs of the next level; rows None = level 1."""
        parents = [None] if rows is None else [self.candidates[row] for row in rows]
        found = [self.children(parent, top_k) for parent in parents]
        self.candidates = [
            NaiveNode(token, parent)
            for parent, (tokens, _) in zip(parents, found, strict=True)
            for token in tokens
        ]
        return np.array([tokens for tokens, _ in found]), np.array([probs for _, probs in found])
