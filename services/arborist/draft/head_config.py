"""A head's config.json, read and written; what the tensors say wins over what it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from arborist.core.errors import MismatchError
from arborist.draft.eagle3_head import FusionConfig
from arborist.draft.head import HeadConfig
from arborist.draft.rotary import Llama3Scaling

FEATURE_LAYERS = "feature_layer_ids"
"""Decoder layers of the target whose inputs an EAGLE-3 head is fed with."""
OUTPUT_LAYERS = "eagle_aux_hidden_state_layer_ids"
"""SpecForge's word for them, inside `eagle_config`: layers whose *outputs* they are."""
LAYER_NORMS = "layernorms"
"""Says that layer 0 of an EAGLE-1/2 head has an input norm."""


def parse_head_config(
    raw: Mapping[str, Any], names: set[str], source: str, layer: str = "layers.0"
) -> HeadConfig:
    """Reads an official config.json; biases and norms are decided by the tensors.

    Args:
        raw: config.json.
        names: Every tensor name of the file.
        source: Folder or hub name, for messages.
        layer: Name of the first decoder layer.
    Raises:
        MismatchError: A field is missing or out of range.
    """
    is_eagle3 = layer == "midlayer"
    try:
        heads = int(raw["num_attention_heads"])
        hidden = int(raw["hidden_size"])
        rope = raw.get("rope_parameters") or {}
        scaling = raw.get("rope_scaling") or rope
        return HeadConfig(
            hidden_size=hidden,
            intermediate_size=int(raw["intermediate_size"]),
            num_attention_heads=heads,
            num_key_value_heads=int(raw.get("num_key_value_heads") or heads),
            head_dim=int(raw.get("head_dim") or hidden // max(heads, 1)),
            vocab_size=int(raw["vocab_size"]),
            # EAGLE-3 files say anything here (40 in a published one) and hold one layer.
            num_layers=1 if is_eagle3 else int(raw.get("num_hidden_layers", 1)),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
            rope_linear_factor=_rope_linear_factor(scaling),
            rope_llama3=_rope_llama3(scaling),
            max_position_embeddings=int(raw.get("max_position_embeddings", 2048)),
            hidden_act=str(raw.get("hidden_act", "silu")),
            bias="fc.bias" in names,
            qkv_bias=f"{layer}.self_attn.q_proj.bias" in names,
            o_bias=f"{layer}.self_attn.o_proj.bias" in names,
            qk_norm=f"{layer}.self_attn.q_norm.weight" in names,
            embedding_norm="embedding_layernorm.weight" in names and not is_eagle3,
            input_norm=_has_input_norm(raw, names) and not is_eagle3,
            output_norm="pre_lm_head_layernorm.weight" in names and not is_eagle3,
            norm_output=bool(raw.get("norm_output")) and not is_eagle3,
        )
    except KeyError as error:
        raise MismatchError(f"config.json of {source} has no {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise MismatchError(f"config.json of {source}: {error}") from None


def parse_fusion_config(
    raw: Mapping[str, Any], names: set[str], fc_width: int, source: str
) -> FusionConfig:
    """Reads how an EAGLE-3 head fuses the target's layers.

    Args:
        raw: config.json.
        names: Every tensor name of the file.
        fc_width: Width that `fc` reads.
        source: Folder or hub name, for messages.
    Raises:
        MismatchError: The config is out of range or contradicts `fc`.
    """
    try:
        hidden = int(raw.get("target_hidden_size") or raw["hidden_size"])
        if hidden < 1 or fc_width % hidden:
            raise ValueError(f"fc.weight reads {fc_width}: must be a multiple of {hidden}")
        return FusionConfig(
            target_hidden_size=hidden,
            num_layers=fc_width // hidden,
            layer_ids=_feature_layers(raw),
            # Announced norms are wanted even if they are not there: then they are missing.
            fc_norm="fc_norm.0.weight" in names or bool(raw.get("fc_norm")),
            norm_before_fc="input_norm.weight" in names or bool(raw.get("norm_before_fc")),
            norm_before_residual=bool(raw.get("norm_before_residual")),
            norm_output=bool(raw.get("norm_output")),
        )
    except KeyError as error:
        raise MismatchError(f"config.json of {source} has no {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise MismatchError(f"config.json of {source}: {error}") from None


def _feature_layers(raw: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Returns the layers whose inputs are wanted, or None when config.json does not say."""
    found = raw.get(FEATURE_LAYERS)
    if found is None:
        outputs = (raw.get("eagle_config") or {}).get(OUTPUT_LAYERS)
        found = [int(layer) + 1 for layer in outputs or ()]
    if not found:
        return None
    layers = tuple(int(layer) for layer in found)
    if list(layers) != sorted(set(layers)) or min(layers, default=0) < 0:
        raise ValueError(f"{FEATURE_LAYERS} = {list(layers)}: must ascend from 0 on")
    return layers


def _has_input_norm(raw: Mapping[str, Any], names: set[str]) -> bool:
    # The config must agree: the published heads have no such norm, and a stray one is an error.
    return bool(raw.get(LAYER_NORMS)) and "layers.0.input_layernorm.weight" in names


def _rope_kind(scaling: Mapping[str, Any]) -> str:
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def _rope_linear_factor(scaling: Mapping[str, Any]) -> float:
    kind = _rope_kind(scaling)
    if kind in ("default", "llama3"):
        return 1.0
    if kind == "linear":
        return float(scaling["factor"])
    raise ValueError(f"rope scaling = {kind}: must be default, linear or llama3")


def _rope_llama3(scaling: Mapping[str, Any]) -> Llama3Scaling | None:
    if _rope_kind(scaling) != "llama3":
        return None
    return Llama3Scaling(
        factor=float(scaling["factor"]),
        low_freq_factor=float(scaling["low_freq_factor"]),
        high_freq_factor=float(scaling["high_freq_factor"]),
        original_max_position_embeddings=int(scaling["original_max_position_embeddings"]),
    )


def head_config_fields(config: HeadConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the official config.json of an EAGLE-1/2 head."""
    fields: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "num_hidden_layers": config.num_layers,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_act": config.hidden_act,
        "bias": config.bias,
        "qkv_bias": config.qkv_bias,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        fields["head_dim"] = config.head_dim
    if config.rope_linear_factor != 1.0:
        fields["rope_scaling"] = {"type": "linear", "factor": config.rope_linear_factor}
    if config.rope_llama3 is not None:
        fields["rope_scaling"] = _llama3_fields(config.rope_llama3)
    if config.input_norm:
        fields[LAYER_NORMS] = True
    if config.norm_output:
        fields["norm_output"] = True
    return fields


def eagle3_config_fields(
    config: HeadConfig, fusion: FusionConfig, num_draft_ids: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Returns the official config.json of an EAGLE-3 head, with the layers it is fed from.

    Args:
        config: Shape of the decoder layer.
        fusion: How features become states.
        num_draft_ids: Token ids it drafts.
        dtype: Of the file.
    """
    fields = head_config_fields(config, dtype)
    del fields["bias"]
    fields |= {
        "target_hidden_size": fusion.target_hidden_size,
        "draft_vocab_size": num_draft_ids,
    }
    if fusion.layer_ids is not None:
        fields[FEATURE_LAYERS] = list(fusion.layer_ids)
    for name in ("fc_norm", "norm_before_fc", "norm_before_residual", "norm_output"):
        if getattr(fusion, name):
            fields[name] = True
    return fields


def _llama3_fields(scaling: Llama3Scaling) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
    }
