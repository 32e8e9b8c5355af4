"""The EAGLE-3 head: one decoder layer over [token embedding ; state], fed by fused target layers.

Architecture as the published checkpoints have it: `fc` fuses the states of several target layers
into one; the layer norms embedding and state on their own and attends over both together; its
output before the norm is the state of the next step; the normed output goes to an LM head of the
head's own, over a draft vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from arborist.draft.head import (
    Attend,
    HeadAttention,
    HeadConfig,
    HeadMlp,
    RmsNorm,
    prepare_for_inference,
)
from arborist.draft.rotary import Rotary


@dataclass(frozen=True, slots=True)
class FusionConfig:
    """How the target's layers become one state, and what a step keeps.

    Attributes:
        target_hidden_size: Width of one layer's state.
        num_layers: Layers whose states are concatenated.
        layer_ids: Decoder layers of the target whose inputs they are; None = the official choice.
        fc_norm: Whether every layer's state is normed on its own before `fc`.
        norm_before_fc: Whether the concatenation is normed before `fc`.
        norm_before_residual: Whether the residual of attention is the normed state.
        norm_output: Whether the next step is fed the normed output.
    """

    target_hidden_size: int
    num_layers: int = 3
    layer_ids: tuple[int, ...] | None = None
    fc_norm: bool = False
    norm_before_fc: bool = False
    norm_before_residual: bool = False
    norm_output: bool = False

    def __post_init__(self) -> None:
        for name in ("target_hidden_size", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.layer_ids is not None and len(self.layer_ids) != self.num_layers:
            raise ValueError(
                f"layer ids = {list(self.layer_ids)}: fc.weight reads {self.num_layers} layers"
            )

    @property
    def width(self) -> int:
        """Returns the width of a feature row."""
        return self.target_hidden_size * self.num_layers


class Eagle3Layer(nn.Module):
    """The decoder layer; it attends over [embedding ; state], each normed on its own."""

    def __init__(self, config: HeadConfig, norm_before_residual: bool) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = HeadAttention(config, 0, 2 * hidden)
        self.mlp = HeadMlp(config)
        self.input_layernorm = RmsNorm(hidden, eps)
        self.hidden_norm = RmsNorm(hidden, eps)
        self.post_attention_layernorm = RmsNorm(hidden, eps)
        self._norm_before_residual = norm_before_residual

    def forward(
        self, token_embeddings: Tensor, states: Tensor, angles: Tensor, attend: Attend
    ) -> Tensor:
        """Returns (R, H) for embeddings and states (R, H)."""
        normed: Tensor = self.hidden_norm(states)
        inputs = torch.cat((self.input_layernorm(token_embeddings), normed), -1)  # [R, 2H]
        residual = normed if self._norm_before_residual else states
        states = residual + self.self_attn(inputs, angles, attend)
        output: Tensor = states + self.mlp(self.post_attention_layernorm(states))
        return output


class Eagle3Head(nn.Module):
    """An EAGLE-3 head; official tensor names, without `embed_tokens`, `lm_head`, `d2t`, `t2d`."""

    def __init__(self, config: HeadConfig, fusion: FusionConfig) -> None:
        """Builds a head with fresh weights (nn.Linear's own initialisation).

        Args:
            config: Shape of the decoder layer.
            fusion: How features become states.
        """
        super().__init__()
        self.config = config
        self.fusion = fusion
        eps = config.rms_norm_eps
        self.fc = nn.Linear(fusion.width, config.hidden_size, bias=False)
        self.fc_norm = (
            nn.ModuleList(RmsNorm(fusion.target_hidden_size, eps) for _ in range(fusion.num_layers))
            if fusion.fc_norm
            else None
        )
        self.input_norm = RmsNorm(fusion.width, eps) if fusion.norm_before_fc else None
        self.midlayer = Eagle3Layer(config, fusion.norm_before_residual)
        self.norm = RmsNorm(config.hidden_size, eps)
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
        return self.fusion.width

    def prepare_for_inference(self) -> None:
        """Arranges the weights for few rows at a time; names, shapes and values stay.

        Call it once the head is on its device and in its dtype; it must not be moved afterwards.
        """
        prepare_for_inference(self)

    def fuse(self, features: Tensor) -> Tensor:
        """Fuses the target's layers.

        Args:
            features: (R, feature_width), the layers' states side by side.
        Returns:
            (R, H), as `forward` takes them; the head's own output is never fused.
        """
        if self.fc_norm is not None:
            sizes = [self.fusion.target_hidden_size] * self.fusion.num_layers
            parts = torch.split_with_sizes(features, sizes, -1)
            normed = [norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)]
            features = torch.cat(normed, -1)
        if self.input_norm is not None:
            features = self.input_norm(features)
        states: Tensor = self.fc(features)
        return states

    def readout(self, states: Tensor) -> Tensor:
        """Returns what the LM head reads of the outputs, (R, H) for (R, H)."""
        if self.fusion.norm_output:
            return states
        normed: Tensor = self.norm(states)
        return normed

    def forward(
        self, token_embeddings: Tensor, states: Tensor, positions: Tensor, attend: Attend
    ) -> Tensor:
        """Runs one step of every row.

        Args:
            token_embeddings: Embeddings of x_{t+1}, shape (R, H).
            states: Fused features of position t or, inside a tree, the head's own output; (R, H).
            positions: Draft positions t, int64, shape (R,), each below `rotary.num_positions`.
            attend: Attention over whatever the caller keeps; see `Attend`.
        Returns:
            (R, H): the state of the next step; its `readout` times the LM head gives the logits of
            x_{t+2}.
        """
        output: Tensor = self.midlayer(token_embeddings, states, self.rotary(positions), attend)
        if self.fusion.norm_output:
            output = self.norm(output)
        return output
