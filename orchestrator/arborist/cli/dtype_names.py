"""Short names of element types on the command line, and what the configuration calls them."""

from __future__ import annotations

DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
