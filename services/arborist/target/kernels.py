"""Linear layers that run a few rows faster on a CPU, sharing the model's weights.

A tree of a few rows on two cores spends most of its time in linear layers, where BLAS takes up to
three times as long for `x · Wᵀ` with 4 to 48 rows as for the same product with another operand
order. And halves are emulated on CPUs without instructions for them. Both are mended once, when a
model is loaded. Figures are for MKL on AVX-512 with 1 and 2 threads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

# Below, reading the weights is all that counts, whatever the order.
_MIN_ROWS = 4
# MKL has its own kernels for this many rows and fewer.
_MAX_ROWS = 48
# Up to here, blocks of at most _MAX_ROWS rows are no slower than one product.
_MAX_BLOCKED_ROWS = 2 * _MAX_ROWS

# Their results meet only element by element and then go into the third, whose product takes its
# input column by column; so nothing between them needs to be copied into row-major order.
_COLUMN_MAJOR_OUTPUTS = ("gate_proj", "up_proj")
_COLUMN_MAJOR_INPUTS = ("down_proj",)

# What a CPU's features are called that multiply halves natively.
_NATIVE_HALVES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


class _CpuLinear(nn.Module):
    """A linear layer without bias; hooks on it are not called."""

    def __init__(self, weight: Tensor, factor: Tensor) -> None:
        """Keeps a weight.

        Args:
            weight: (out_features, in_features), as loaded.
            factor: What rows are multiplied with: the weight, or an fp32 copy of it.
        """
        super().__init__()
        self.weight = weight
        self.out_features, self.in_features = weight.shape
        self._factor = factor
        # A plain attribute: found without a search through the module's parameters.
        self._stored = weight.detach()
        self._widens = factor.dtype != weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        """Returns x · Wᵀ, (..., out_features), in x's dtype.

        Args:
            x: (..., in_features); packed rows, (1, rows, in_features), are what it is made for.
        """
        rows = x.shape[1] if x.dim() == 3 and len(x) == 1 else 1
        if rows == 1 or (rows < _MIN_ROWS and not self._widens):
            return F.linear(x, self._stored)
        flat = x.reshape(rows, self.in_features)  # [R, in]
        if not self._widens:
            return self._multiply(flat)[None]
        # Products of halves are exact in fp32 and sums are kept there, as native bf16 does.
        return self._multiply(flat.float()).to(x.dtype)[None]

    # Called some eighty times in a forward: without hooks the detour through Module costs more
    # than it gives.
    __call__ = forward

    def _multiply(self, x: Tensor) -> Tensor:
        """Returns x · Wᵀ for some rows, (rows, out_features)."""
        raise NotImplementedError


class TransposedLinear(_CpuLinear):
    """Keeps Wᵀ row-major, so that `x · Wᵀ` needs no transposition."""

    def __init__(self, weight: Tensor, factor: Tensor) -> None:
        """Lays the factor out anew, and the weight too when they are one."""
        transposed = factor.t().contiguous()  # [in, out]
        if factor.dtype == weight.dtype:
            weight = nn.Parameter(transposed.t(), requires_grad=False)
        super().__init__(weight, transposed)

    def _multiply(self, x: Tensor) -> Tensor:
        rows = len(x)
        if not _MAX_ROWS < rows <= _MAX_BLOCKED_ROWS:
            return torch.mm(x, self._factor)
        return torch.cat([torch.mm(block, self._factor) for block in x.chunk(2)])


class SwappedLinear(_CpuLinear):
    """Computes (W · xᵀ)ᵀ."""

    def __init__(self, weight: Tensor, factor: Tensor, *, column_major: bool) -> None:
        """Keeps a weight.

        Args:
            weight: As for every CPU layer.
            factor: As for every CPU layer.
            column_major: Whether results may be column-major.
        """
        super().__init__(weight, factor)
        self._column_major = column_major

    def _multiply(self, x: Tensor) -> Tensor:
        rows = len(x)
        if not _MIN_ROWS <= rows <= _MAX_BLOCKED_ROWS:
            return F.linear(x, self._factor)
        if rows > _MAX_ROWS:
            return torch.cat([torch.mm(self._factor, block.t()).t() for block in x.chunk(2)])
        out = torch.mm(self._factor, x.t()).t()  # [R, out]
        return out if self._column_major else out.contiguous()


def use_cpu_kernels(model: PreTrainedModel) -> None:
    """Swaps the linear layers of a model on the CPU.

    Args:
        model: Model in evaluation mode; changed in place.
    """
    widen = model.dtype in _NATIVE_HALVES and not _is_native(model.dtype)
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.bias is None:
                setattr(parent, name, _cpu_linear(child, name, child is head, widen))


def _cpu_linear(linear: nn.Linear, name: str, is_head: bool, widen: bool) -> _CpuLinear:
    weight = linear.weight
    factor = weight.detach().float() if widen else weight.detach()
    # The head's weight may also be the embedding table, which is read by rows.
    wide = linear.out_features > linear.in_features
    if is_head or wide or name in _COLUMN_MAJOR_INPUTS:
        column_major = is_head or name in _COLUMN_MAJOR_OUTPUTS
        return SwappedLinear(weight, factor, column_major=column_major)
    return TransposedLinear(weight, factor)


def _is_native(dtype: torch.dtype) -> bool:
    wanted = _NATIVE_HALVES[dtype]
    return any(has is True and wanted in name for name, has in torch.cpu.get_capabilities().items())
