"""Root-mean-square norms in fewer operations, for CPUs.

With one row on a CPU the cost of a norm is the number of its operations, not their arithmetic. The
usual form takes eight, and its mean alone as long as the rest; every decoder layer has two. Half
precision keeps the model's own norms, whose order of roundings is part of the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_PROBE_ROWS = 3
_TOLERANCE = 1e-5


class LeanRmsNorm(nn.Module):
    """x / rms(x) · weight in fp32; hooks on it are not called."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        """Takes over the weight of a norm, (hidden,), and what it adds to the mean square."""
        super().__init__()
        self.weight = weight
        self.variance_epsilon = eps
        # Plain attributes: found without a search through the module's parameters.
        self._stored = weight.detach()
        self._share = 1.0 / weight.numel()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised rows, (..., hidden)."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # [..., 1]
        scale = norm.square_().mul_(self._share).add_(self.variance_epsilon).rsqrt_()
        return torch.mul(x, scale).mul_(self._stored)

    __call__ = forward


def use_lean_norms(model: nn.Module) -> None:
    """Swaps every fp32 norm that computes the same; others (such as Gemma's) stay.

    Args:
        model: In evaluation mode, on the CPU; changed in place, state dict unchanged.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if lean := _lean(child):
                setattr(parent, name, lean)


@torch.no_grad()
def _lean(norm: Any) -> LeanRmsNorm | None:
    weight, eps = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    if weight.dtype != torch.float32 or isinstance(norm, LeanRmsNorm):
        return None
    lean = LeanRmsNorm(weight, eps)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn((_PROBE_ROWS, weight.numel()), generator=generator)
    same = torch.allclose(lean(rows), norm(rows), rtol=_TOLERANCE, atol=_TOLERANCE)
    return lean if same else None
