"""The formats EAGLE heads are published in, told apart by tensor names, and what each says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import Tensor

from arborist.core.errors import MismatchError
from arborist.draft.draft_vocabulary import OFFSETS, offsets_of
from arborist.draft.head_config import FEATURE_LAYERS, LAYER_NORMS, OUTPUT_LAYERS
from arborist.draft.target_vocabulary import LM_HEAD

_MIDLAYER = "midlayer."
_LAYER = "layers.0."
_WRAPPERS = ("model.model.", "model.")
# Names of the same tensor elsewhere, without the wrapper; prefixes end with a dot.
_OLD_SPECULATORS = {
    "fusion_fc.": "fc.",
    "transformer.": _LAYER,
}
_HASS = {
    "embed_layernorm.": "embedding_layernorm.",
    "hidden_layernorm.": f"{_LAYER}input_layernorm.",
    "lm_head_layernorm.": "pre_lm_head_layernorm.",
}
# What files carry besides a head's weights, and what nobody needs of it.
_ROTARY_TABLES = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
_LAYER_CONFIG = "transformer_layer_config"
FIRST_SHAPES = (f"{_LAYER}self_attn.q_proj.weight", f"{_LAYER}post_attention_layernorm.weight")
"""Two tensors whose shapes tell EAGLE-3's first layer from EAGLE-1/2's."""
_HOT_IDS = ("hot_token_id", "token_map")


class HeadFormat(Enum):
    """Layouts of a head's tensors, told apart by their names alone."""

    EAGLE_2 = "EAGLE-1/2"
    EAGLE_3 = "EAGLE-3"
    VLLM_WRAPPER = "vLLM wrapper (model.*)"
    SPECULATORS = "speculators EAGLE-1 (fusion_fc.*, transformer.*)"
    SPECULATORS_3 = "speculators EAGLE-3 (layers.0.*)"
    HASS = "HASS (extra norms)"


@dataclass(slots=True)
class OfficialHead:
    """A head brought into the official form.

    Attributes:
        found: Format it came in.
        tensors: By official name; for an EAGLE-1/2 head `lm_head.weight` may be among them.
        config: Fields of the official config.json.
        notes: What was renamed, read from elsewhere or left out, in words.
    """

    found: HeadFormat
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def is_eagle3(self) -> bool:
        """Returns whether it is an EAGLE-3 head."""
        return any(name.startswith(_MIDLAYER) for name in self.tensors)


def detect_format(names: Collection[str], wide_query: bool = False) -> HeadFormat:
    """Decides which layout the tensors have.

    Args:
        names: Every tensor name of the file.
        wide_query: Whether the query of `layers.0` reads two widths, [embedding ; state].
    """
    if any(name.startswith("model.") for name in names):
        return HeadFormat.VLLM_WRAPPER
    if any(name.startswith(_MIDLAYER) for name in names):
        return HeadFormat.EAGLE_3
    if wide_query or f"{_LAYER}hidden_norm.weight" in names:
        return HeadFormat.SPECULATORS_3
    if any(name.startswith(tuple(_OLD_SPECULATORS)) for name in names):
        return HeadFormat.SPECULATORS
    if any(name.startswith(tuple(_HASS)) for name in names):
        return HeadFormat.HASS
    return HeadFormat.EAGLE_2


def reads_two_widths(shapes: Mapping[str, Sequence[int]]) -> bool:
    """Returns whether the query of `layers.0` reads [embedding ; state], as in EAGLE-3.

    Args:
        shapes: Of the tensors FIRST_SHAPES, as far as there are any.
    """
    query, norm = (shapes.get(name) for name in FIRST_SHAPES)
    if query is None or norm is None:
        return False
    return query[-1] == 2 * norm[-1]


def to_official(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> OfficialHead:
    """Brings a head of any known format into the official form.

    Args:
        tensors: As stored.
        config: config.json as stored.
    Returns:
        The head; whether every tensor is known and of the right shape is for the reader to check.
    Raises:
        MismatchError: Two tensors mean the same, or the config lacks a part.
    """
    found = detect_format(tensors, reads_two_widths(_shapes(tensors)))
    head = OfficialHead(found, {}, _flat_config(config))
    plain = _unwrapped(tensors) if found is HeadFormat.VLLM_WRAPPER else dict(tensors)
    inner = detect_format(plain, reads_two_widths(_shapes(plain)))
    for name, tensor in plain.items():
        if name.endswith(_ROTARY_TABLES):
            head.notes.append(f"left out {name}: it follows from the config")
            continue
        official = _official_name(name, inner)
        if official in head.tensors:
            raise MismatchError(f"head tensor {name} is there twice", metadata={"tensor": name})
        head.tensors[official] = tensor
    if inner is HeadFormat.EAGLE_3 or inner is HeadFormat.SPECULATORS_3:
        _place_feature_layers(head, inner, config)
    else:
        _place_norms(head, found)
    _place_draft_vocabulary(head)
    return head


def describe_origin(config: Mapping[str, Any]) -> str:
    """Returns who wrote a head, as far as its config.json says; empty = nothing known."""
    architectures = [str(one) for one in config.get("architectures") or []]
    if "speculators_model_type" in config:
        return f"speculators, {config['speculators_model_type']}"
    if any(one.endswith(("Eagle", "Eagle3")) for one in architectures):
        return f"SGLang or SpecForge, {architectures[0]}"
    return ""


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Sequence[int]]:
    return {name: tensors[name].shape for name in FIRST_SHAPES if name in tensors}


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        prefix = next((one for one in _WRAPPERS if name.startswith(one)), "")
        short = name.removeprefix(prefix)
        if short in plain:
            raise MismatchError(f"head tensor {name} is there twice", metadata={"tensor": name})
        plain[short] = tensor
    return plain


def _official_name(name: str, found: HeadFormat) -> str:
    if found is HeadFormat.SPECULATORS_3:
        names = {_LAYER: _MIDLAYER}
    elif found in (HeadFormat.SPECULATORS, HeadFormat.HASS):
        names = {**_OLD_SPECULATORS, **_HASS}
    else:
        return name
    prefix = next((one for one in names if name.startswith(one)), None)
    return name if prefix is None else names[prefix] + name.removeprefix(prefix)


def _flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of the decoder layer beside those of the head."""
    flat = {key: value for key, value in config.items() if key not in (_LAYER_CONFIG, "model")}
    for key in (_LAYER_CONFIG, "model"):
        inner = config.get(key)
        if isinstance(inner, dict):
            # The decoder's own fields win: outside, model_type and others describe the wrapper.
            flat |= inner
    for key in ("speculators_config", "speculators_model_type", "speculators_version", "auto_map"):
        flat.pop(key, None)
    return flat


def _place_feature_layers(head: OfficialHead, inner: HeadFormat, config: Mapping[str, Any]) -> None:
    """Names the layers once, in one way: those whose inputs the head is fed with."""
    listed = config.get(OUTPUT_LAYERS)
    outputs = (config.get("eagle_config") or {}).get(OUTPUT_LAYERS)
    if outputs and (not listed or inner is HeadFormat.EAGLE_3):
        layers = [int(layer) + 1 for layer in outputs]
        head.notes.append(f"layer outputs {list(outputs)} are the inputs of layers {layers}")
    elif listed:
        # vLLM, and so speculators, counts the states before each layer.
        layers = [int(layer) for layer in listed]
    else:
        return
    head.config[FEATURE_LAYERS] = layers
    head.config.pop(OUTPUT_LAYERS, None)
    head.config.pop("eagle_config", None)


def _place_norms(head: OfficialHead, found: HeadFormat) -> None:
    """Says of an EAGLE-1/2 head's extra norms that they are meant."""
    if found is HeadFormat.VLLM_WRAPPER and "norm.weight" in head.tensors:
        # The wrapped decoder norms its output, and that output is what it is fed next.
        head.tensors["pre_lm_head_layernorm.weight"] = head.tensors.pop("norm.weight")
        head.config["norm_output"] = True
        head.notes.append("the output norm is part of what is fed back")
    if found is not HeadFormat.EAGLE_2 and f"{_LAYER}input_layernorm.weight" in head.tensors:
        head.config[LAYER_NORMS] = True


def _place_draft_vocabulary(head: OfficialHead) -> None:
    """Makes `d2t` of lists of token ids, which other formats call otherwise."""
    for name in _HOT_IDS:
        ids = head.tensors.pop(name, None)
        if ids is None:
            continue
        offsets = offsets_of(ids.flatten())
        known = head.tensors.get(OFFSETS)
        if known is not None and known.tolist() != offsets.tolist():
            raise MismatchError(
                f"head tensor {name} names other tokens than {OFFSETS}", metadata={"tensor": name}
            )
        head.tensors[OFFSETS] = offsets
        head.notes.append(f"{OFFSETS} made of {name}")
    for name in ("hot_vocab_size", "truncated_vocab_size"):
        head.config.pop(name, None)
    # Without a map the LM head must cover everything; one that is borrowed does.
    is_whole = OFFSETS not in head.tensors and LM_HEAD not in head.tensors
    if is_whole or head.config.get("draft_vocab_size") is None:
        head.config.pop("draft_vocab_size", None)
