"""Lean norms compute what the model's own norms compute, or are not used."""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from arborist.common.lean_norm import LeanRmsNorm, use_lean_norms


class Layer(nn.Module):
    """A layer with one norm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm


def with_random_weight(norm: nn.Module) -> nn.Module:
    """Gives a norm weights that show when they are applied differently."""
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm.eval()


def test_a_llama_norm_is_swapped_and_computes_the_same() -> None:
    """The state dict stays; rows of any shape come out alike, tiny and huge ones too."""
    norm = with_random_weight(LlamaRMSNorm(48, eps=1e-5))
    layer = Layer(norm)
    names = list(layer.state_dict())
    x = torch.randn(2, 5, 48) * torch.tensor([1e-3, 1e3]).view(2, 1, 1)
    before = x.clone()

    use_lean_norms(layer)

    assert isinstance(layer.norm, LeanRmsNorm)
    assert list(layer.state_dict()) == names
    torch.testing.assert_close(layer.norm(x), norm(x))
    assert torch.equal(x, before)


def test_norms_that_compute_something_else_stay() -> None:
    """Gemma scales by one plus its weight; half precision rounds in an order of its own."""
    gemma = with_random_weight(GemmaRMSNorm(48))
    half = with_random_weight(LlamaRMSNorm(48)).to(torch.bfloat16)
    for norm in (gemma, half, nn.LayerNorm(48)):
        layer = Layer(norm)

        use_lean_norms(layer)

        assert layer.norm is norm
