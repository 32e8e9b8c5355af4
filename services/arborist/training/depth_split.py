"""A deeper start of the same size: every layer of a model cut into several thin ones.

A layer adds the outputs of its heads and of its neurons to the residual stream, one by one. Cut
into layers of a few heads and neurons each, the same sum is made in more, thinner steps; the model
says almost the same and the rest is training. Deep and thin is what small models do best with
(MobileLLM, arXiv 2402.14905, §2.2), and decoding such a model is bound by its layers, not its rows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


def split_depth(
    model: LlamaForCausalLM, parts: int, intermediate_size: int, calibration: Tensor
) -> LlamaForCausalLM:
    """Returns a model with `parts` layers for each layer of the one given.

    Part i of a layer gets the i-th run of its query heads, each with a KV head of its own, and
    `intermediate_size` of its neurons: the strongest ones go last, where the whole attention of the
    layer has been added; the weakest are left out when there are too many.

    Args:
        model: In fp32, without biases; not changed.
        parts: Layers made of one layer, a divisor of its query heads.
        intermediate_size: Neurons of a thin layer, at most 1/parts of the layer's, rounded down.
        calibration: (rows, tokens) token ids on which a neuron's strength is measured.
    Returns:
        A model in fp32.
    Raises:
        ValueError: Sizes that do not divide.
    """
    config: LlamaConfig = model.config
    if parts < 1 or config.num_attention_heads % parts:
        raise ValueError(
            f"split-layers {parts}: must divide the {config.num_attention_heads} attention heads"
        )
    if not 1 <= intermediate_size <= config.intermediate_size // parts:
        raise ValueError(
            f"split-intermediate {intermediate_size}: must be in "
            f"[1, {config.intermediate_size // parts}]"
        )
    thin = copy.deepcopy(config)
    thin.num_hidden_layers = config.num_hidden_layers * parts
    thin.num_attention_heads = config.num_attention_heads // parts
    thin.num_key_value_heads = thin.num_attention_heads
    thin.head_dim = model.model.layers[0].self_attn.head_dim
    thin.intermediate_size = intermediate_size
    split = LlamaForCausalLM(thin).float()
    split.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
    split.model.norm.load_state_dict(model.model.norm.state_dict())
    if not config.tie_word_embeddings:
        split.lm_head.load_state_dict(model.lm_head.state_dict())
    strengths = _neuron_strengths(model, calibration)
    for index, layer in enumerate(model.model.layers):
        order = strengths[index].argsort()[-parts * intermediate_size :]  # Ascending strength.
        for part in range(parts):
            neurons = order[part * intermediate_size : (part + 1) * intermediate_size]
            _fill(split.model.layers[index * parts + part], layer, config, part, parts, neurons)
    return split


@torch.no_grad()
def _fill(
    thin: LlamaDecoderLayer,
    layer: LlamaDecoderLayer,
    config: LlamaConfig,
    part: int,
    parts: int,
    neurons: Tensor,
) -> None:
    thin.input_layernorm.load_state_dict(layer.input_layernorm.state_dict())
    thin.post_attention_layernorm.load_state_dict(layer.post_attention_layernorm.state_dict())
    width = layer.self_attn.head_dim
    count = config.num_attention_heads // parts
    heads = range(part * count, (part + 1) * count)
    groups = config.num_attention_heads // config.num_key_value_heads
    query = _rows(heads, width)
    key = _rows((head // groups for head in heads), width)
    old, new = layer.self_attn, thin.self_attn
    new.q_proj.weight.copy_(old.q_proj.weight[query])
    new.k_proj.weight.copy_(old.k_proj.weight[key])
    new.v_proj.weight.copy_(old.v_proj.weight[key])
    new.o_proj.weight.copy_(old.o_proj.weight[:, query])
    thin.mlp.gate_proj.weight.copy_(layer.mlp.gate_proj.weight[neurons])
    thin.mlp.up_proj.weight.copy_(layer.mlp.up_proj.weight[neurons])
    thin.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, neurons])


def _rows(heads: Iterable[int], width: int) -> Tensor:
    return torch.cat([torch.arange(head * width, (head + 1) * width) for head in heads])


@torch.no_grad()
def _neuron_strengths(model: LlamaForCausalLM, calibration: Tensor) -> list[Tensor]:
    """Root mean square of what each neuron adds to the residual stream, (neurons,) per layer."""
    strengths: list[Tensor] = []
    handles = []
    for layer in model.model.layers:
        columns = layer.mlp.down_proj.weight.norm(dim=0)  # [neurons]

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], columns: Tensor = columns) -> None:
            activation = inputs[0].flatten(0, -2)  # [rows, neurons]
            strengths.append(activation.square().mean(dim=0).sqrt() * columns)

        handles.append(layer.mlp.down_proj.register_forward_pre_hook(keep))
    try:
        model.model(input_ids=calibration, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return strengths
