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

from arborist.common.few_rows import SiblingLinear, use_few_rows
from arborist.draft.rotary import Llama3Scaling, Rotary, rotate

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
        rope_llama3: Frequencies scaled as Llama 3.1 does; None = not.
        max_position_embeddings: Longest sequence the head was trained for, in tokens.
        hidden_act: Activation of the MLP, a key of ACTIVATIONS.
        bias: Whether `fc` has a bias.
        qkv_bias: Whether q, k and v projections have biases.
        o_bias: Whether the output projection has a bias.
        qk_norm: Whether every query and key head is normed before RoPE, as in Qwen3.
        embedding_norm: Whether token embeddings are normed before `fc` (HASS and others).
        input_norm: Whether layer 0 has an input norm; the published EAGLE-1/2 heads have none.
        output_norm: Whether the output is normed before the LM head.
        norm_output: Whether the output that is fed back is the normed one.
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
    rope_llama3: Llama3Scaling | None = None
    max_position_embeddings: int = 2048
    hidden_act: str = "silu"
    bias: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    embedding_norm: bool = False
    input_norm: bool = False
    output_norm: bool = False
    norm_output: bool = False

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


class RmsNorm(nn.Module):
    """Root-mean-square norm; half precision is squared in fp32."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self._shape = (hidden_size,)
        self._eps = eps

    def forward(self, states: Tensor) -> Tensor:
        """Returns the normalised states, same shape and dtype."""
        # Under autocast the weights are fp32 and the states are not; torch has no kernel for that.
        weight = self.weight.to(states.dtype)
        return F.rms_norm(states, self._shape, weight, self._eps)


class HeadAttention(nn.Module):
    """Projections of one attention; who attends to whom is the caller's `attend`."""

    def __init__(self, config: HeadConfig, layer_index: int, input_size: int | None = None) -> None:
        """Makes the projections.

        Args:
            config: Shape of the head.
            layer_index: Which KV layer it writes.
            input_size: Width of its input; None = hidden_size.
        """
        super().__init__()
        bias = config.qkv_bias
        width = config.hidden_size if input_size is None else input_size
        self._layer_index = layer_index
        self._head_dim = config.head_dim
        self._num_heads = config.num_attention_heads
        self._num_rotated = config.num_attention_heads + config.num_key_value_heads
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, query_size, bias=bias)
        self.k_proj = nn.Linear(width, key_size, bias=bias)
        self.v_proj = nn.Linear(width, key_size, bias=bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.o_bias)
        self.q_norm, self.k_norm = (
            RmsNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
            for _ in range(2)
        )
        self._fused: Callable[[Tensor], Tensor] | None = None

    def fuse(self) -> None:
        """Has q, k and v computed as one product; the three projections are views of its matrix."""
        first: nn.Module = self.q_proj
        if isinstance(first, SiblingLinear):  # On the CPU they were joined already.
            self._fused = first.product
            return
        parts = (self.q_proj, self.k_proj, self.v_proj)
        weight = torch.cat([part.weight.data for part in parts])
        begin = 0
        for part in parts:
            part.weight.data = weight[begin : begin + part.out_features]
            begin += part.out_features
        bias = None if self.q_proj.bias is None else torch.cat([part.bias for part in parts])
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
        rotated = rotate(self._normed(heads[:, : self._num_rotated]), angles)
        output: Tensor = self.o_proj(
            attend(
                self._layer_index,
                rotated[:, : self._num_heads],
                rotated[:, self._num_heads :],
                heads[:, self._num_rotated :],
            )
        )
        return output

    def _normed(self, heads: Tensor) -> Tensor:
        if self.q_norm is None or self.k_norm is None:
            return heads
        query, key = heads[:, : self._num_heads], heads[:, self._num_heads :]
        return torch.cat((self.q_norm(query), self.k_norm(key)), 1)


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
    """One decoder layer; a published layer 0 attends to the fused pair without an input norm."""

    def __init__(self, config: HeadConfig, layer_index: int) -> None:
        super().__init__()
        self.self_attn = HeadAttention(config, layer_index)
        self.mlp = HeadMlp(config)
        self.input_layernorm = (
            RmsNorm(config.hidden_size, config.rms_norm_eps)
            if layer_index or config.input_norm
            else None
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
        self.embedding_layernorm = _norm(config, config.embedding_norm)
        self.pre_lm_head_layernorm = _norm(config, config.output_norm)
        self.rotary = Rotary(
            config.head_dim,
            config.rope_theta,
            config.max_position_embeddings,
            linear_factor=config.rope_linear_factor,
            llama3=config.rope_llama3,
        )

    @property
    def feature_width(self) -> int:
        """Returns the width of a feature row."""
        return self.config.hidden_size

    def prepare_for_inference(self) -> None:
        """Arranges the weights for few rows at a time; names, shapes and values stay.

        Call it once the head is on its device and in its dtype; it must not be moved afterwards.
        """
        prepare_for_inference(self)

    def fuse(self, features: Tensor) -> Tensor:
        """Returns the target's features as `forward` takes them: as they are."""
        return features

    def readout(self, states: Tensor) -> Tensor:
        """Returns what the LM head reads of the outputs, (R, H) for (R, H)."""
        if self.pre_lm_head_layernorm is None or self.config.norm_output:
            return states
        normed: Tensor = self.pre_lm_head_layernorm(states)
        return normed

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
            (R, H): predicted f_{t+1}; its `readout` times the LM head gives the logits of x_{t+2}.
        """
        if self.embedding_layernorm is not None:
            token_embeddings = self.embedding_layernorm(token_embeddings)
        states: Tensor = self.fc(torch.cat((token_embeddings, features), -1))  # [R, H]
        angles = self.rotary(positions)  # [R, 2, 1, hd]
        for layer in self.layers:
            states = layer(states, angles, attend)
        if self.pre_lm_head_layernorm is not None and self.config.norm_output:
            states = self.pre_lm_head_layernorm(states)
        return states


def prepare_for_inference(head: nn.Module) -> None:
    """Arranges a head's weights for few rows at a time; names, shapes and values stay.

    Args:
        head: On its device and in its dtype; it must not be moved afterwards.
    """
    if all(parameter.device.type == "cpu" for parameter in head.parameters()):
        use_few_rows(head)
    attentions = [part for part in head.modules() if isinstance(part, HeadAttention)]
    for attention in attentions:
        attention.fuse()


def _norm(config: HeadConfig, wanted: bool) -> RmsNorm | None:
    return RmsNorm(config.hidden_size, config.rms_norm_eps) if wanted else None
