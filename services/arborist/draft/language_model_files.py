"""Tells a draft that is a language model of its own from an EAGLE head, without its weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_CAUSAL = ("ForCausalLM", "LMHeadModel")
_FUSION = ("fc.", "fusion_fc.", "midlayer.")
_TOP_LAYERS = ("layers.", "midlayer.")
_WRAPPER = "model."


def is_language_model(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Returns whether a checkpoint is a causal language model rather than a head.

    Heads name such an architecture too, so the tensors decide: a head brings the layer that fuses
    embedding and feature, and its decoder layers lie at the top, not inside a model.

    Args:
        config: config.json.
        names: Every tensor name.
    """
    architectures = [str(one) for one in config.get("architectures") or []]
    if not any(one.endswith(_CAUSAL) for one in architectures):
        return False
    return bool(names) and not any(_is_of_a_head(name) for name in names)


def _is_of_a_head(name: str) -> bool:
    if name.startswith(_TOP_LAYERS):
        return True
    while name.startswith(_WRAPPER):
        name = name.removeprefix(_WRAPPER)
    return name.startswith(_FUSION)
