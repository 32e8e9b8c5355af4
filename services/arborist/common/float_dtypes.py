"""Element types a model may be run in, by the names of the configuration."""

from __future__ import annotations

import torch

FLOAT_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
