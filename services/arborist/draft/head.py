"""The EAGLE-1/2 head: one narrow decoder over (token embedding, target feature) pairs.

Architecture of EAGLE §4.1 as the published checkpoints have it: `fc` fuses [embedding ; feature],
then Llama layers follow, of which layer 0 has no input norm; there is no final norm. The output is
the predicted next feature: the target's LM head turns it into logits, and it is fed back unchanged
as the feature of the next step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arborist.common.few_rows import FewRowsMatrix, use_few_rows

Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer_index, query [R, heads, hd], key [R, kv_heads, hd], value [R, kv_heads, hd]) with RoPE
applied -> [R, heads * hd]. Training attends inside its sequences, the engine over its KV."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """Shape of a head; names are those of the official config.json.

    Attributes:
        hidden_size: Width of embeddings, features and output.
        intermediate_size: Width of the MLP.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads; divides num_attention_heads.
        head_dim: Width of one head, even.
        vocab_size: Number of token ids of the target.
        num_layers: Decoder layers, `num_hidden_layers` in config.json; 1 in published heads.
        rms_norm_eps: Added to the mean square in every norm.
        rope_theta: Base of the rotary frequencies.
        rope_linear_factor: Positions are divided by this ("linear" rope scaling); 1 = none.
        max_position_embeddings: Longest sequence the head was trained for, in tokens.
        hidden_act: Activation of the MLP, a key of ACTIVATIONS.
        bias: Whether `fc` has a bias.
        qkv_bias: Whether q, k and v projections have biases.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    num_layers: int = 1
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_linear_factor: float = 1.0
    max_position_embeddings: int = 2048
    hidden_act: str = "silu"
    bias: bool = True
    qkv_bias: bool = False

    def __post_init__(self) -> None:
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
            "num_layers",
            "max_position_embeddings",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads}: must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim}: must be even")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act = {self.hidden_act}: must be one of {list(ACTIVATIONS)}")


class Rotary(nn.Module):
    """Rotary position embedding with precomputed angles, in the half-split layout of Llama."""

    table: Tensor

    def __init__(self, config: HeadConfig) -> None:
        """Computes the angles of the positions the head was trained for."""
        super().__init__()
        self._head_dim = config.head_dim
        self._theta = config.rope_theta
        self._linear_factor = config.rope_linear_factor
        # Not part of the state dict: official files have no such tensor.
        self.register_buffer(
            "table", self._angles(config.max_position_embeddings), persistent=False
        )

    @property
    def num_positions(self) -> int:
        """Returns how many positions the table covers."""
        return self.table.shape[0]

    def reserve(self, num_positions: int) -> None:
        """Makes the table cover [0, num_positions); never shrinks it."""
        if num_positions > self.num_positions:
            self.table = self._angles(num_positions).to(self.table)

    def _angles(self, num_positions: int) -> Tensor:
        half = torch.arange(0, self._head_dim, 2, dtype=torch.int64).float() / self._head_dim
        frequencies = 1.0 / self._theta**half  # [hd / 2]
        positions = torch.arange(num_positions, dtype=torch.float32) / self._linear_factor
        angles = torch.outer(positions, frequencies)  # [P, hd / 2]
        cos, sin = angles.cos(), angles.sin()
        # The minus of the rotation sits in the table, so applying it is one fused multiply-add.
        rows = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), 1)
        return rows.unsqueeze(2)  # [P, 2, 1, hd]

    def forward(self, positions: Tensor) -> Tensor:
        """Returns the rows of the table, shape (R, 2, 1, head_dim); positions int64 (R,)."""
        return self.table.index_select(0, positions)


def rotate(states: Tensor, angles: Tensor) -> Tensor:
    """Applies RoPE.

    Args:
        states: (R, heads, head_dim).
        angles: Rows of `Rotary`, (R, 2, 1, head_dim).
    Returns:
        (R, heads, head_dim).
    """
    swapped = states.roll(states.shape[-1] // 2, -1)
    return torch.addcmul(states * angles[:, 0], swapped, angles[:, 1])


class RmsNorm(nn.Module):
    """Root-mean-square norm; half precision is squared in fp32."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self._shape = (hidden_size,)
        self._eps = eps

    def forward(self, states: Tensor) -> Tensor:
        """Returns the normalised states, same shape and dtype."""
        return F.rms_norm(states, self._shape, self.weight, self._eps)


class HeadAttention(nn.Module):
    """Projections of one attention; who attends to whom is the caller's `attend`."""

    def __init__(self, config: HeadConfig, layer_index: int) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, config.qkv_bias
        self._layer_index = layer_index
        self._head_dim = config.head_dim
        self._num_heads = config.num_attention_heads
        self._num_rotated = config.num_attention_heads + config.num_key_value_heads
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(hidden, query_size, bias=bias)
        self.k_proj = nn.Linear(hidden, key_size, bias=bias)
        self.v_proj = nn.Linear(hidden, key_size, bias=bias)
        self.o_proj = nn.Linear(query_size, hidden, bias=False)
        self._fused: Callable[[Tensor], Tensor] | None = None

    def fuse(self) -> None:
        """Stores q, k and v as one matrix; the three projections become views of it."""
        parts = (self.q_proj, self.k_proj, self.v_proj)
        weight = torch.cat([part.weight.data for part in parts])
        begin = 0
        for part in parts:
            part.weight.data = weight[begin : begin + part.out_features]
            begin += part.out_features
        bias = None if self.q_proj.bias is None else torch.cat([part.bias for part in parts])
        if weight.device.type == "cpu":
            self._fused = FewRowsMatrix(weight, bias)
        else:
            self._fused = partial(F.linear, weight=weight, bias=bias)

    def forward(self, states: Tensor, angles: Tensor, attend: Attend) -> Tensor:
        """Returns the attention output, shape (R, H), for states (R, H)."""
        if self._fused is None:
            projected = torch.cat(
                (self.q_proj(states), self.k_proj(states), self.v_proj(states)), -1
            )
        else:
            projected = self._fused(states)
        heads = projected.view(states.shape[0], -1, self._head_dim)  # [R, heads + 2 kv_heads, hd]
        rotated = rotate(heads[:, : self._num_rotated], angles)
        output: Tensor = self.o_proj(
            attend(
                self._layer_index,
                rotated[:, : self._num_heads],
                rotated[:, self._num_heads :],
                heads[:, self._num_rotated :],
            )
        )
        return output


class HeadMlp(nn.Module):
    """Gated MLP."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)
        self._activation = ACTIVATIONS[config.hidden_act]

    def forward(self, states: Tensor) -> Tensor:
        """Returns (R, H) for states (R, H)."""
        output: Tensor = self.down_proj(
            self._activation(self.gate_proj(states)) * self.up_proj(states)
        )
        return output


class HeadLayer(nn.Module):
    """One decoder layer; layer 0 attends to the fused pair without an input norm."""

    def __init__(self, config: HeadConfig, layer_index: int) -> None:
        super().__init__()
        self.self_attn = HeadAttention(config, layer_index)
        self.mlp = HeadMlp(config)
        self.input_layernorm = (
            RmsNorm(config.hidden_size, config.rms_norm_eps) if layer_index else None
        )
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, states: Tensor, angles: Tensor, attend: Attend) -> Tensor:
        """Returns (R, H) for states (R, H)."""
        normed = states if self.input_layernorm is None else self.input_layernorm(states)
        states = states + self.self_attn(normed, angles, attend)
        output: Tensor = states + self.mlp(self.post_attention_layernorm(states))
        return output


class EagleHead(nn.Module):
    """An EAGLE-1/2 head; its state dict has the official tensor names, without `embed_tokens`."""

    def __init__(self, config: HeadConfig) -> None:
        """Builds a head with fresh weights (nn.Linear's own initialisation)."""
        super().__init__()
        self.config = config
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=config.bias)
        self.layers = nn.ModuleList(HeadLayer(config, i) for i in range(config.num_layers))
        self.rotary = Rotary(config)

    def prepare_for_inference(self) -> None:
        """Arranges the weights for few rows at a time; names, shapes and values stay.

        Call it once the head is on its device and in its dtype; it must not be moved afterwards.
        """
        for part in self.modules():
            if isinstance(part, HeadAttention):
                part.fuse()
        if self.fc.weight.device.type == "cpu":
            use_few_rows(self)

    def forward(
        self, token_embeddings: Tensor, features: Tensor, positions: Tensor, attend: Attend
    ) -> Tensor:
        """Predicts the next feature of every row (EAGLE §4.1).

        Args:
            token_embeddings: Embeddings of x_{t+1}, shape (R, H).
            features: f_t, the target's or, inside a tree, the head's own output; (R, H).
            positions: Draft positions t, int64, shape (R,), each below `rotary.num_positions`.
            attend: Attention over whatever the caller keeps; see `Attend`.
        Returns:
            (R, H): predicted f_{t+1}; times the LM head it gives the logits of x_{t+2}.
        """
        states: Tensor = self.fc(torch.cat((token_embeddings, features), -1))  # [R, H]
        angles = self.rotary(positions)  # [R, 2, 1, hd]
        for layer in self.layers:
            states = layer(states, angles, attend)
        return states
