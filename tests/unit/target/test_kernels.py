"""Swapped linear layers compute what the model's own compute."""

import pytest
import torch
from tests.unit.target.sessions import TinyModel
from torch import nn
from torch.nn import functional as F

from arborist.target import kernels
from arborist.target.kernels import SwappedLinear, TransposedLinear, use_cpu_kernels

ROWS = [1, 2, 3, 4, 13, 48, 49, 61, 96, 97, 130]


def layers(weight: torch.Tensor, factor: torch.Tensor) -> list[nn.Module]:
    """Every form of one layer."""
    return [
        TransposedLinear(weight, factor),
        SwappedLinear(weight, factor, column_major=True),
        SwappedLinear(weight, factor, column_major=False),
    ]


@pytest.mark.parametrize("rows", ROWS)
def test_every_form_multiplies_like_linear(rows: int) -> None:
    """Any number of rows, row-major or column-major, gives the product."""
    weight, x = torch.randn(24, 40), torch.randn(1, rows, 40)
    column_major = x[0].t().contiguous().t()[None]

    for layer in layers(weight, weight):
        torch.testing.assert_close(layer(x), F.linear(x, weight))
        torch.testing.assert_close(layer(column_major), F.linear(x, weight))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_widened_halves_round_once(rows: int, dtype: torch.dtype) -> None:
    """A product of halves is the fp32 product, rounded to the half."""
    weight, x = torch.randn(24, 40).to(dtype), torch.randn(1, rows, 40).to(dtype)
    exact = F.linear(x.double(), weight.double())

    for layer in layers(weight, weight.float()):
        out = layer(x)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("shape", [(40,), (7, 40), (2, 5, 40), (1, 2, 5, 40)])
def test_other_shapes_keep_their_shape(shape: tuple[int, ...]) -> None:
    """What is not one packed sequence is multiplied all the same."""
    weight, x = torch.randn(24, 40), torch.randn(shape)

    for layer in layers(weight, weight):
        torch.testing.assert_close(layer(x), F.linear(x, weight))


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_keeps_its_weights_and_its_states(
    tiny: TinyModel, dtype: torch.dtype, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every linear layer is swapped; weights stay as they are, states within rounding."""
    monkeypatch.setattr(kernels, "_is_native", lambda _: native)
    model = tiny.reference().to(dtype)
    ids = torch.tensor([tiny.prompt(1, 12)])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(ids).logits

    use_cpu_kernels(model)

    after = model.state_dict()
    assert not any(type(module) is nn.Linear for module in model.modules())
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0)
    error = (model(ids).logits - expected).norm() / expected.norm()
    assert float(error) < (1e-5 if dtype == torch.float32 else 5e-2)


def test_layers_with_a_bias_are_left_alone() -> None:
    """Only plain products are swapped."""
    weight = torch.randn(4, 4)
    layer = nn.Linear(4, 4)

    class Model(nn.Module):
        dtype = torch.float32

        def __init__(self) -> None:
            super().__init__()
            self.proj, self.head = layer, nn.Linear(4, 4, bias=False)
            self.head.weight = nn.Parameter(weight)

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    model = Model()
    use_cpu_kernels(model)

    assert model.proj is layer
    assert isinstance(model.head, SwappedLinear)
