"""A tensor as bytes: what crosses the wire and passes through the controller untouched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

DTypeName = Literal["float32", "float16", "bfloat16", "int32", "int64"]

ITEM_SIZES: dict[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "int64": 8}


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A dense array, little-endian, row-major.

    Attributes:
        dtype: Element type.
        shape: Dimensions, outermost first.
        data: Elements; length checked at construction.
    """

    dtype: DTypeName
    shape: tuple[int, ...]
    data: bytes

    def __post_init__(self) -> None:
        expected = math.prod(self.shape) * ITEM_SIZES[self.dtype]
        if len(self.data) != expected:
            raise ValueError(f"tensor data is {len(self.data)} bytes, shape needs {expected}")

    def __len__(self) -> int:
        """Returns the number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: slice) -> RawTensor:
        """Returns consecutive rows; the slice's step must be 1."""
        begin, end, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError("only consecutive rows can be sliced")
        row_bytes = len(self.data) // self.shape[0] if self.shape[0] else 0
        end = max(begin, end)
        data = self.data[begin * row_bytes : end * row_bytes]
        return RawTensor(self.dtype, (end - begin, *self.shape[1:]), data)

    @property
    def nbytes(self) -> int:
        """Returns the size of the data, in bytes."""
        return len(self.data)
