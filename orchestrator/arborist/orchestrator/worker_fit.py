"""Whether a draft belongs to a target: a head of another model would draft nonsense."""

from __future__ import annotations

from arborist.core.engine import ModelInfo
from arborist.core.features import FeatureSpec


def draft_misfit(
    target: ModelInfo, draft: ModelInfo, feature_spec: FeatureSpec | None, feature_width: int
) -> str:
    """Compares what both workers said of their models.

    Args:
        target: The model being served.
        draft: What proposes.
        feature_spec: Features the draft wants; None for a language-model draft.
        feature_width: Width of one feature row the draft takes.
    Returns:
        What does not fit, in words; empty when everything does.
    """
    if draft.vocab_size != target.vocab_size:
        return f"vocab_size is {draft.vocab_size}, the target's is {target.vocab_size}"
    if feature_spec is not None and (
        misfit := _feature_misfit(target, feature_spec, feature_width)
    ):
        return misfit
    digests = (draft.embedding_digest, target.embedding_digest)
    if all(digests) and digests[0] != digests[1]:
        return "embedding digest differs: the draft was started with another target"
    return ""


def _feature_misfit(target: ModelInfo, feature_spec: FeatureSpec, feature_width: int) -> str:
    layers = feature_spec.layer_ids
    width = target.hidden_size * (1 if layers is None else len(layers))
    if feature_width != width:
        return f"feature width is {feature_width}, the target gives {width}"
    # A layer id names the layer whose input is taken (FeatureSpec), so the last one is N - 1.
    if layers is not None and max(layers) >= target.num_layers:
        return f"layer {max(layers)} is wanted, the target has layers 0 to {target.num_layers - 1}"
    return ""
