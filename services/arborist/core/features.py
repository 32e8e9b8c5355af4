"""Which hidden states of the target a draft is fed with."""

from __future__ import annotations

from dataclasses import dataclass

from arborist.core.tensor import DTypeName


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """What the target returns beside tokens.

    Attributes:
        layer_ids: None for the state after the final norm (EAGLE-1/2); else indices of decoder
            layers whose inputs are concatenated (EAGLE-3).
        dtype: Element type on the wire; None = the target's own.
    """

    layer_ids: tuple[int, ...] | None = None
    dtype: DTypeName | None = None
