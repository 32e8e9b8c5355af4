"""Matrix products of a few rows on a CPU: what drafting and verifying a tree spends its time in.

BLAS packs the weight matrix anew in every call, which for 4 to 48 rows costs more than the product
itself: on two cores `x · Wᵀ` with 9 rows takes twice as long as with one. Both MKL and oneDNN can
keep the packed form for a fixed number of rows; MKL is the faster of the two on Intel's CPUs and
two to three times slower elsewhere. Here it is made once per row bucket, on first use, and rows are
padded up to the bucket. One row only reads the weights: in input-major order, which is the order of
the sum, that takes half as long. Half precision is emulated on CPUs without instructions for it:
there, products are taken in fp32 (exact for halves) and rounded once, as native bf16 does.
"""

from __future__ import annotations

from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A bucket's packed copy is as large as the weights, so there are few.
_BUCKETS = (8, 16, 32, 64)
# Weights of a model in fp32 up to which copies are kept; larger models do not belong on a CPU.
_MAX_PACKED_BYTES = 512 * 1024 * 1024
# What a CPU's features are called that multiply halves natively.
_NATIVE_HALVES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
# Linear layers that read the same rows, by their names in their parent.
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class _Product(Protocol):
    """x · Wᵀ + b for one fixed number of rows."""

    def __call__(self, x: Tensor) -> Tensor:
        """Returns (rows, out) for (rows, in)."""
        ...


class _InputMajorProduct:
    """One row times a transposed copy of the weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._columns = weight.t().contiguous()  # [in, out]
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        if self._bias is None:
            return torch.mm(x, self._columns)
        return torch.addmm(self._bias, x, self._columns)


class _MklProduct:
    """A copy of the weight as MKL packs it for one number of rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        self._multiply = torch.ops.mkl._mkl_linear
        self._packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), rows)
        self._weight, self._bias, self._rows = weight, bias, rows

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self._multiply(x, self._packed, self._weight, self._bias, self._rows)
        return out


class _OneDnnProduct:
    """A copy of the weight as oneDNN blocks it for one number of rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        self._multiply = torch.ops.mkldnn._linear_pointwise
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self._multiply(x, self._packed, self._bias, "none", [], "")
        return out


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
        self._products: dict[int, _Product] = {}
        self._padded: dict[int, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Returns x · Wᵀ + b.

        Args:
            x: (rows, in), dtype of the weight.
        Returns:
            (rows, out), same dtype.
        """
        if self._widens:
            return self._multiply(x.float()).to(x.dtype)
        return self._multiply(x)

    def _multiply(self, x: Tensor) -> Tensor:
        rows = len(x)
        if not self._packs or rows > _BUCKETS[-1]:
            return F.linear(x, self._factor, self._bias)
        if rows == 1:
            return self._product(1)(x)
        bucket = next(size for size in _BUCKETS if rows <= size)
        product = self._product(bucket)
        if rows == bucket:
            return product(x)
        padded = self._padded.get(bucket)
        if padded is None:
            padded = self._padded[bucket] = x.new_zeros((bucket, x.shape[1]))
        padded[:rows].copy_(x)  # What other rows hold has no part in these.
        return product(padded)[:rows]

    def _product(self, rows: int) -> _Product:
        product = self._products.get(rows)
        if product is None:
            product = self._products[rows] = _new_product(self._factor, self._bias, rows)
        return product


class FewRowsLinear(nn.Module):
    """A linear layer over a `FewRowsMatrix`; hooks on it are not called."""

    def __init__(self, linear: nn.Linear, *, packs: bool) -> None:
        """Takes over weight and bias of a layer, by reference and under the same names."""
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._matrix = FewRowsMatrix(*_stored(linear), packs=packs)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x · Wᵀ + b for the last dimension of x, (..., in) to (..., out)."""
        if x.dim() == 2:
            return self._matrix(x)
        out = self._matrix(x.reshape(-1, self.in_features))  # [R, out]
        return out.view(*x.shape[:-1], self.out_features)

    # Called some hundred times in a forward: without hooks the detour through Module costs more
    # than it gives.
    __call__ = forward


class SiblingProduct:
    """One product for linear layers that read the same rows, such as q, k and v projections.

    The first layer's call computes it for all; the others find their columns of it. Rows are the
    same when they are the same tensor object, which is kept until the last layer has asked.
    """

    def __init__(self, linears: list[nn.Linear], *, packs: bool) -> None:
        """Joins layers; their weights become views of one matrix, so nothing is stored twice.

        Args:
            linears: At least two, of one width and dtype, all with or all without bias.
            packs: Whether packed copies may be kept.
        """
        self._sizes = [linear.out_features for linear in linears]
        weight = torch.cat([linear.weight.detach() for linear in linears])  # [sum(out), in]
        bias = None
        if linears[0].bias is not None:
            bias = torch.cat([linear.bias.detach() for linear in linears])
        begin = 0
        for linear in linears:
            linear.weight.data = weight[begin : begin + linear.out_features]
            begin += linear.out_features
        self._matrix = FewRowsMatrix(weight, bias, packs=packs)
        self._rows: Tensor | None = None
        self._parts: tuple[Tensor, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """Returns every layer's part side by side, (rows, sum of out), for rows (rows, in)."""
        return self._matrix(x)

    def first(self, x: Tensor) -> Tensor:
        """Computes the product of (..., in) and returns the first layer's part, (..., out)."""
        if x.dim() == 2:
            out = self._matrix(x)
        else:
            out = self._matrix(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
        self._rows, self._parts = x, torch.split_with_sizes(out, self._sizes, -1)
        return self._parts[0]

    def part(self, x: Tensor, index: int) -> Tensor | None:
        """Returns a later layer's part, (..., out); None = computed for other rows."""
        if x is not self._rows:
            return None
        part = self._parts[index]
        if index == len(self._parts) - 1:
            self._rows, self._parts = None, ()
        return part


class SiblingLinear(nn.Module):
    """One of the layers of a `SiblingProduct`; hooks on it are not called.

    Attributes:
        product: Computes it, with its siblings.
    """

    def __init__(self, linear: nn.Linear, product: SiblingProduct, index: int) -> None:
        """Takes over weight and bias of a layer, by reference and under the same names."""
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._stored, self._stored_bias = _stored(linear)
        self.product, self._index = product, index

    def forward(self, x: Tensor) -> Tensor:
        """Returns x · Wᵀ + b for the last dimension of x, (..., in) to (..., out)."""
        if self._index == 0:
            return self.product.first(x)
        part = self.product.part(x, self._index)
        return F.linear(x, self._stored, self._stored_bias) if part is None else part

    __call__ = forward


def use_few_rows(module: nn.Module) -> None:
    """Swaps every linear layer inside a module; call it once, on the CPU, when weights are final.

    Args:
        module: In evaluation mode; changed in place, state dict unchanged. One thread at a time may
            call it from then on.
    """
    parents = list(module.modules())
    linears = [child for parent in parents for _, child in _linears(parent)]
    packs = sum(4 * child.weight.numel() for child in linears) <= _MAX_PACKED_BYTES
    for parent in parents:
        for names in _SIBLINGS:
            _join_siblings(parent, names, packs)
        for name, child in _linears(parent):
            setattr(parent, name, FewRowsLinear(child, packs=packs))


def _linears(parent: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, child) for name, child in parent.named_children() if _is_plain(child)]


def _is_plain(child: nn.Module) -> TypeGuard[nn.Linear]:
    # Quantised layers are of another class, or their weight is a tensor of another class.
    return type(child) is nn.Linear and type(child.weight.data) is Tensor


def _join_siblings(parent: nn.Module, names: tuple[str, ...], packs: bool) -> None:
    found = dict(_linears(parent))
    linears = [found[name] for name in names if name in found]
    kinds = {(one.in_features, one.weight.dtype, one.bias is None) for one in linears}
    if len(linears) < len(names) or len(kinds) != 1:
        return
    product = SiblingProduct(linears, packs=packs)
    for index, name in enumerate(names):
        setattr(parent, name, SiblingLinear(found[name], product, index))


def _stored(linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
    # Plain attributes: found without a search through the module's parameters.
    return linear.weight.detach(), None if linear.bias is None else linear.bias.detach()


def can_pack(weight: Tensor) -> bool:
    """Returns whether packed forms of a matrix can be kept here."""
    if weight.device.type != "cpu":
        return False
    if weight.dtype == torch.float32 and _has_mkl():
        return True
    return weight.dtype in (torch.float32, torch.bfloat16) and _has_one_dnn()


def _new_product(weight: Tensor, bias: Tensor | None, rows: int) -> _Product:
    is_single = weight.dtype == torch.float32
    if is_single and rows == 1:
        return _InputMajorProduct(weight, bias)
    if is_single and _has_mkl() and (_is_intel() or not _has_one_dnn()):
        return _MklProduct(weight, bias, rows)
    return _OneDnnProduct(weight, bias, rows)


def _has_mkl() -> bool:
    available = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return bool(available) and hasattr(torch.ops.mkl, "_mkl_linear")


def _has_one_dnn() -> bool:
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _is_intel() -> bool:
    return "intel" in str(torch.cpu.get_capabilities().get("cpu_name", "")).lower()


def _is_native(dtype: torch.dtype) -> bool:
    wanted = _NATIVE_HALVES[dtype]
    return any(has is True and wanted in name for name, has in torch.cpu.get_capabilities().items())
