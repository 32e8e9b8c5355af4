"""Whether a target's weights were quantised, by what its config says and what the numbers show."""

from __future__ import annotations

from torch import Tensor

from arborist.common.model_files import ModelFiles

_PROJECTIONS = ("q_proj.weight", "o_proj.weight", "up_proj.weight", "down_proj.weight")
_PACKED = ("qweight", "weight_packed", "weight_scale", "weight_scale_inv", "absmax", "SCB")
_MAX_TENSORS = 8
_MAX_ROWS = 64
# Bits, weights looked at together, and the most different numbers that many bits can make of them.
# Weights that were never quantised have nearly as many numbers as there are weights.
_LEVELS = ((4, 64, 16), (8, 1024, 256))


def quantisation_of(files: ModelFiles) -> str | None:
    """Returns how a target was quantised, in words; None = nothing shows that it was.

    Args:
        files: Of the target.
    """
    stated = (files.config.get("text_config") or files.config).get("quantization_config")
    stated = stated or files.config.get("quantization_config")
    if isinstance(stated, dict):
        method = stated.get("quant_method", "unnamed method")
        return f"config.json says {method}, {stated.get('bits') or stated.get('fmt') or '?'} bits"
    packed = next((name for name in files.shards if name.endswith(_PACKED)), None)
    if packed is not None:
        return f"tensor {packed} belongs to quantised weights"
    names = [name for name in files.shards if name.endswith(_PROJECTIONS)][:_MAX_TENSORS]
    found = {_bits(files.read(name)[0]) for name in names}
    if names and None not in found:
        return f"its matrices hold as few different numbers as {max(filter(None, found))} bits make"
    return None


def _bits(weight: Tensor) -> int | None:
    """Returns how many bits explain a matrix; None = it is not quantised."""
    rows = weight[:_MAX_ROWS].float()
    for bits, width, levels in _LEVELS:
        groups = rows[:, : rows.shape[1] // width * width].reshape(-1, width)
        if len(groups) and max(len(group.unique()) for group in groups) <= levels:
            return bits
    return None
