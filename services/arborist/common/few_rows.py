"""Matrix products of a few rows on a CPU: what drafting and verifying a tree spends its time in.

BLAS packs the weight matrix anew in every call, which for 4 to 48 rows costs more than the product
itself: on two cores `x · Wᵀ` with 9 rows takes twice as long as with one. MKL can keep the packed
form for a fixed number of rows. Here it is made once per row bucket, on first use, and rows are
padded up to the bucket; 13 rows then cost 1.3 times what one row costs. And half precision is
emulated on CPUs without instructions for it: there, products are taken in fp32 (exact for halves)
and rounded once, as native bf16 does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A bucket's packed copy is as large as the weights, so there are few.
_BUCKETS = (8, 16, 32, 64)
# One row only reads the weights; nothing is packed.
_MIN_ROWS = 2
# Weights of a model in fp32 up to which copies are kept; larger models do not belong on a CPU.
_MAX_PACKED_BYTES = 512 * 1024 * 1024
# What a CPU's features are called that multiply halves natively.
_NATIVE_HALVES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


class FewRowsMatrix:
    """A weight matrix for products with few rows; any number of rows is right."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, packs: bool = True) -> None:
        """Keeps a weight on the CPU.

        Args:
            weight: (out, in), shared, not copied.
            bias: (out,) or None.
            packs: Whether packed copies may be kept.
        """
        self.weight = weight
        self._widens = weight.dtype in _NATIVE_HALVES and not _is_native(weight.dtype)
        self._factor = weight.float() if self._widens else weight
        self._bias = bias.to(self._factor.dtype) if bias is not None else None
        self._packs = packs and can_pack(self._factor)
        self._packed: dict[int, Tensor] = {}
        self._padded: dict[int, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Returns x · Wᵀ + b.

        Args:
            x: (rows, in), dtype of the weight.
        Returns:
            (rows, out), same dtype.
        """
        rows = len(x)
        if rows < _MIN_ROWS:
            bias = self._bias
            return F.linear(x, self.weight, bias.to(x.dtype) if bias is not None else None)
        if self._widens:
            return self._multiply(x.float(), rows).to(x.dtype)
        return self._multiply(x, rows)

    def _multiply(self, x: Tensor, rows: int) -> Tensor:
        if not self._packs or rows > _BUCKETS[-1]:
            return F.linear(x, self._factor, self._bias)
        bucket = next(size for size in _BUCKETS if rows <= size)
        packed = self._packed.get(bucket)
        if packed is None:
            packed = _mkl()._mkl_reorder_linear_weight(self._factor.contiguous(), bucket)
            self._packed[bucket] = packed
            self._padded[bucket] = torch.zeros((bucket, self._factor.shape[1]))
        if rows < bucket:
            padded = self._padded[bucket]
            padded[:rows].copy_(x)  # What other rows hold has no part in these.
            x = padded  # [bucket, in]
        out: Tensor = _mkl()._mkl_linear(x, packed, self._factor, self._bias, bucket)
        return out[:rows]


class FewRowsLinear(nn.Module):
    """A linear layer over a `FewRowsMatrix`; hooks on it are not called."""

    def __init__(self, linear: nn.Linear, *, packs: bool) -> None:
        """Takes over weight and bias of a layer, by reference and under the same names."""
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        bias = None if linear.bias is None else linear.bias.detach()
        # Plain attributes: found without a search through the module's parameters.
        self._stored, self._stored_bias = linear.weight.detach(), bias
        self._matrix = FewRowsMatrix(self._stored, bias, packs=packs)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x · Wᵀ + b for the last dimension of x, (..., in) to (..., out)."""
        if x.numel() == self.in_features:  # One row: plain decoding.
            return F.linear(x, self._stored, self._stored_bias)
        if x.dim() == 2:
            return self._matrix(x)
        out = self._matrix(x.reshape(-1, self.in_features))  # [R, out]
        return out.view(*x.shape[:-1], self.out_features)

    # Called some eighty times in a forward: without hooks the detour through Module costs more
    # than it gives.
    __call__ = forward


def use_few_rows(module: nn.Module) -> None:
    """Swaps every linear layer inside a module; call it once, on the CPU, when weights are final.

    Args:
        module: In evaluation mode; changed in place, state dict unchanged.
    """
    linears = [
        (parent, name, child)
        for parent in list(module.modules())
        for name, child in list(parent.named_children())
        if type(child) is nn.Linear
    ]
    total = sum(4 * child.weight.numel() for _, _, child in linears)
    for parent, name, child in linears:
        setattr(parent, name, FewRowsLinear(child, packs=total <= _MAX_PACKED_BYTES))


def can_pack(weight: Tensor) -> bool:
    """Returns whether MKL can keep a packed form of a matrix here."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and hasattr(_mkl(), "_mkl_linear")
    )


def _mkl() -> Any:
    return torch.ops.mkl


def _is_native(dtype: torch.dtype) -> bool:
    wanted = _NATIVE_HALVES[dtype]
    return any(has is True and wanted in name for name, has in torch.cpu.get_capabilities().items())
