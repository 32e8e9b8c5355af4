"""Products of few rows are what linear layers compute, whatever the rows and the dtype."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from arborist.common import few_rows
from arborist.common.few_rows import FewRowsLinear, FewRowsMatrix, SiblingLinear, use_few_rows

ROWS = [1, 2, 7, 8, 9, 13, 16, 17, 33, 64, 65, 130]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_any_number_of_rows_gives_the_product(rows: int, packs: bool, with_bias: bool) -> None:
    """Padding and packing never show; a second call uses what the first one packed."""
    weight, x = torch.randn(24, 40), torch.randn(rows, 40)
    bias = torch.randn(24) if with_bias else None
    matrix = FewRowsMatrix(weight, bias, packs=packs)

    for _ in range(2):
        torch.testing.assert_close(matrix(x), F.linear(x, weight, bias))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_emulated_halves_round_once(
    rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product of halves is the fp32 product, rounded to the half."""
    monkeypatch.setattr(few_rows, "_is_native", lambda _: False)
    weight, x = torch.randn(24, 40).to(dtype), torch.randn(rows, 40).to(dtype)
    exact = F.linear(x.double(), weight.double())

    out = FewRowsMatrix(weight)(x)

    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("shape", [(40,), (7, 40), (2, 5, 40), (1, 2, 5, 40)])
def test_other_shapes_keep_their_shape(shape: tuple[int, ...]) -> None:
    """All dimensions but the last are rows."""
    linear, x = nn.Linear(40, 24), torch.randn(shape)

    with torch.inference_mode():
        torch.testing.assert_close(FewRowsLinear(linear, packs=True)(x), linear(x))


def test_a_swapped_module_keeps_its_state() -> None:
    """Every linear layer is swapped; names, weights and results stay."""
    module = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 4, bias=False)).eval()
    x = torch.randn(5, 8)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    expected = module(x)

    use_few_rows(module)

    after = module.state_dict()
    assert [type(part) for part in module] == [FewRowsLinear, nn.SiLU, FewRowsLinear]
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    with torch.inference_mode():
        torch.testing.assert_close(module(x), expected)


class _Attention(nn.Module):
    """Three projections of the same rows, as decoder layers have them."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q_proj = nn.Linear(40, 24, bias=bias)
        self.k_proj = nn.Linear(40, 8, bias=bias)
        self.v_proj = nn.Linear(40, 8, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), -1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 40), (7, 40), (1, 1, 40), (1, 16, 40), (2, 50, 40)])
def test_siblings_give_what_each_would_give_alone(shape: tuple[int, ...], bias: bool) -> None:
    """Projections of the same rows are one product, with the results and names of three."""
    module = _Attention(bias).eval()
    x = torch.randn(shape)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.inference_mode():
        expected = module(x)
        use_few_rows(module)

        torch.testing.assert_close(module(x), expected)
        torch.testing.assert_close(module(x), expected)

    after = module.state_dict()
    assert isinstance(module.k_proj, SiblingLinear)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_sibling_of_other_rows_computes_its_own_product() -> None:
    """What one projection was given never leaks into another one's result."""
    module = _Attention(bias=True).eval()
    first, other = torch.randn(5, 40), torch.randn(5, 40)
    with torch.inference_mode():
        expected = F.linear(other, module.k_proj.weight, module.k_proj.bias)
        use_few_rows(module)
        module.q_proj(first)

        torch.testing.assert_close(module.k_proj(other), expected)
        torch.testing.assert_close(module.k_proj(first.clone()), module.k_proj(first))


class _OtherTensor(torch.Tensor):
    """What a quantiser may make of a weight while the layer stays a linear one."""


def test_weights_of_another_class_stay_as_they_are() -> None:
    """A quantised weight cannot be joined or packed; its layer is left alone."""
    module = _Attention(bias=False)
    weight = torch.randn(8, 40).as_subclass(_OtherTensor)
    module.v_proj.weight = nn.Parameter(weight, requires_grad=False)

    use_few_rows(module)

    assert type(module.v_proj) is nn.Linear
    assert isinstance(module.q_proj, FewRowsLinear)


def test_projections_of_different_widths_stay_apart() -> None:
    """Only layers that can be one matrix become one."""
    module = _Attention(bias=False)
    module.v_proj = nn.Linear(16, 8)

    use_few_rows(module)

    assert isinstance(module.q_proj, FewRowsLinear)


@pytest.mark.parametrize("is_intel", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 16])
def test_every_cpu_gets_the_same_product(
    is_intel: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MKL and oneDNN are two ways to the same numbers."""
    monkeypatch.setattr(few_rows, "_is_intel", lambda: is_intel)
    weight, x = torch.randn(24, 40), torch.randn(rows, 40)

    torch.testing.assert_close(FewRowsMatrix(weight)(x), F.linear(x, weight))
