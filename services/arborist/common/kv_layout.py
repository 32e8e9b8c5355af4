"""What one position of a sequence keeps, as the model says when it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class KvLayout:
    """What one position holds.

    Attributes:
        planes: (heads, width) of every plane: keys of layer 0, values of layer 0, keys of layer 1
            and so on; a plane is what one layer keeps as keys or as values.
    """

    planes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class FeatureLayout:
    """What one position keeps as features.

    Attributes:
        width: Elements.
        dtype: Element type.
    """

    width: int
    dtype: torch.dtype
