"""Which layers of a target an EAGLE-3 head is fed with."""

from __future__ import annotations

from arborist.core.errors import MismatchError
from arborist.draft.eagle3_head import FusionConfig

MIN_LAYERS = 7
"""Least layers of a target for which the official choice names three different ones."""


def default_feature_layers(num_layers: int) -> tuple[int, ...]:
    """Returns the official choice: inputs of a low, a middle and a high layer.

    Args:
        num_layers: Decoder layers of the target.
    Raises:
        MismatchError: The three would not be different layers.
    """
    if num_layers < MIN_LAYERS:
        raise MismatchError(
            f"the target has {num_layers} layers: an EAGLE-3 head that does not name its layers "
            f"needs at least {MIN_LAYERS}"
        )
    return (2, num_layers // 2, num_layers - 3)


def feature_layers(fusion: FusionConfig, num_layers: int) -> tuple[int, ...]:
    """Returns the layers whose inputs the head wants, ascending.

    Args:
        fusion: Of the head.
        num_layers: Decoder layers of the target.
    Raises:
        MismatchError: The target has no such layers, or `fc` reads another number of them.
    """
    layers = fusion.layer_ids
    if layers is None:
        layers = default_feature_layers(num_layers)
    if len(layers) != fusion.num_layers:
        raise MismatchError(
            f"head tensor fc.weight reads {fusion.num_layers} layers, its config names none: "
            f"the official choice is {len(layers)} layers",
            metadata={"tensor": "fc.weight"},
        )
    if max(layers) >= num_layers:
        raise MismatchError(
            f"the head is fed with the input of layer {max(layers)}: "
            f"the target has layers 0 to {num_layers - 1}"
        )
    return layers
