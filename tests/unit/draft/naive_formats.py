"""Every head format's own forward, written out row by row in float64 over the tensors as published.

Nothing here knows the official names or shares code with the package: each format is described by
where it keeps its weights and by what it does with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

Row = np.ndarray


@dataclass
class NaiveFormat:
    """One head.

    Attributes:
        weights: As published, float64.
        layer: Where the decoder layer's tensors are.
        fc: Where the fusing matrix is.
        heads: Query heads.
        kv_heads: KV heads.
        width: Of one head.
        embedding: Token embedding (V, H).
        lm_head: (Vd, H).
        ids: The target's id of each draft id.
        is_eagle3: Whether the layer reads [embedding ; state].
        eps: Of every norm.
        theta: Base of RoPE.
        llama3: (factor, low, high, original) of llama3 rope scaling.
        embed_norm, input_norm, output_norm: Tensors of optional norms; "" = none.
        feed_normed: Whether the normed output is fed back.
        residual_normed: Whether attention's residual is the normed state.
        feature_norms: One per fused layer, or one for all.
    """

    weights: dict[str, np.ndarray]
    layer: str
    fc: str
    heads: int
    kv_heads: int
    width: int
    embedding: np.ndarray
    lm_head: np.ndarray
    ids: list[int]
    is_eagle3: bool = False
    eps: float = 1e-5
    theta: float = 10000.0
    llama3: tuple[float, float, float, int] | None = None
    embed_norm: str = ""
    input_norm: str = ""
    output_norm: str = ""
    feed_normed: bool = False
    residual_normed: bool = False
    feature_norms: list[str] = field(default_factory=list)

    def linear(self, name: str, row: Row) -> Row:
        """Matrix times a row, plus the bias there may be."""
        return self.weights[f"{name}.weight"] @ row + self.weights.get(f"{name}.bias", 0.0)

    def norm(self, name: str, row: Row) -> Row:
        """Root-mean-square norm; no name, no norm."""
        if not name:
            return row
        return row / math.sqrt(float((row**2).mean()) + self.eps) * self.weights[f"{name}.weight"]

    def start(self, feature: Row) -> Row:
        """What a true pair is fed."""
        if not self.is_eagle3:
            return feature
        parts = np.split(feature, max(1, len(self.feature_norms)))
        names = self.feature_norms or [""]
        return self.linear(
            self.fc, np.concatenate([self.norm(n, p) for n, p in zip(names, parts, strict=True)])
        )

    def run(self, tokens: list[int], fed: list[Row]) -> list[Row]:
        """Outputs of a causal sequence, before the norm of the LM head."""
        if self.is_eagle3:
            states, inputs = [], []
            for token, state in zip(tokens, fed, strict=True):
                normed = self.norm(f"{self.layer}.hidden_norm", state)
                embedded = self.norm(f"{self.layer}.input_layernorm", self.embedding[token])
                inputs.append(np.concatenate((embedded, normed)))
                states.append(normed if self.residual_normed else state)
        else:
            states = [
                self.linear(
                    self.fc,
                    np.concatenate((self.norm(self.embed_norm, self.embedding[token]), state)),
                )
                for token, state in zip(tokens, fed, strict=True)
            ]
            inputs = [self.norm(self.input_norm, state) for state in states]
        attended = self.attention(inputs)
        return [self.rest(state + one) for state, one in zip(states, attended, strict=True)]

    def rest(self, state: Row) -> Row:
        """The MLP half of the layer."""
        inner = self.norm(f"{self.layer}.post_attention_layernorm", state)
        gate = self.linear(f"{self.layer}.mlp.gate_proj", inner)
        gate = gate / (1 + np.exp(-gate)) * self.linear(f"{self.layer}.mlp.up_proj", inner)
        return state + self.linear(f"{self.layer}.mlp.down_proj", gate)

    def attention(self, inputs: list[Row]) -> list[Row]:
        """Causal attention, head by head."""
        name = f"{self.layer}.self_attn"
        q, k, v = (
            [self.linear(f"{name}.{kind}_proj", x).reshape(-1, self.width) for x in inputs]
            for kind in "qkv"
        )
        if f"{name}.q_norm.weight" in self.weights:
            q = [np.array([self.norm(f"{name}.q_norm", head) for head in one]) for one in q]
            k = [np.array([self.norm(f"{name}.k_norm", head) for head in one]) for one in k]
        outputs = []
        for i in range(len(inputs)):
            parts = []
            for head in range(self.heads):
                shared = head * self.kv_heads // self.heads
                scores = np.array(
                    [self.turn(q[i][head], i) @ self.turn(k[j][shared], j) for j in range(i + 1)]
                ) / math.sqrt(self.width)
                shares = np.exp(scores - scores.max())
                shares /= shares.sum()
                parts.append(sum(s * v[j][shared] for j, s in enumerate(shares)))
            outputs.append(self.linear(f"{name}.o_proj", np.concatenate(parts)))
        return outputs

    def turn(self, row: Row, position: int) -> Row:
        """RoPE: pair (i, i + half) as a complex number, turned."""
        half = self.width // 2
        angles = np.array(
            [position * self.frequency(self.theta ** (-i / half)) for i in range(half)]
        )
        turned = (row[:half] + 1j * row[half:]) * np.exp(1j * angles)
        return np.concatenate((turned.real, turned.imag))

    def frequency(self, plain: float) -> float:
        """A frequency as Llama 3.1 scales it."""
        if self.llama3 is None:
            return plain
        factor, low, high, original = self.llama3
        wavelength = 2 * math.pi / plain
        if wavelength < original / high:
            return plain
        if wavelength > original / low:
            return plain / factor
        share = (original / wavelength - low) / (high - low)
        return (1 - share) * plain / factor + share * plain

    def children(
        self, tokens: list[int], features: list[Row], path: list[int], top_k: int
    ) -> tuple[list[int], list[float]]:
        """Tokens and log-probs after the pairs and a path of nodes, everything recomputed."""
        tokens, fed = list(tokens), [self.start(feature) for feature in features]
        for node in [*path, None]:
            output = self.run(tokens, fed)[-1]
            normed = self.norm(self.output_norm, output)
            if node is not None:
                tokens.append(node)
                fed.append(normed if self.feed_normed else output)
        logits = self.lm_head @ normed
        logprobs = logits - logits.max()
        logprobs = logprobs - math.log(np.exp(logprobs).sum())
        order = sorted(range(len(logits)), key=lambda i: (-logprobs[i], self.ids[i]))[:top_k]
        return [self.ids[i] for i in order], [float(logprobs[i]) for i in order]


def as_arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The floating-point tensors in float64."""
    return {k: v.double().numpy() for k, v in tensors.items() if v.is_floating_point()}
