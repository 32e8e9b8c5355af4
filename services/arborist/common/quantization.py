"""Quantised checkpoints: which of them transformers can load, and which must not be served."""

from __future__ import annotations

from typing import Any

from transformers.quantizers.auto import AutoHfQuantizer

from arborist.core.errors import MismatchError

_LLM_INT8_THRESHOLD = 6.0  # What bitsandbytes takes when the config says nothing.


def quantization_method(config: dict[str, Any], source: str) -> str | None:
    """Returns how a checkpoint is quantised.

    Args:
        config: Its config.json.
        source: Folder or hub name, for messages.
    Returns:
        `quant_method` of its `quantization_config`; None = it is not quantised.
    Raises:
        MismatchError: transformers does not know the method and would read the weights as they
            lie, or a row's result would depend on the other rows of the batch.
    """
    settings = config.get("quantization_config")
    if settings is None:
        settings = (config.get("text_config") or {}).get("quantization_config")
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(method, str) or not AutoHfQuantizer.supports_quant_method(settings):
        raise MismatchError(
            f"{source} is quantised with {method}, which transformers does not know"
        )
    threshold = settings.get("llm_int8_threshold", _LLM_INT8_THRESHOLD)
    if settings.get("load_in_8bit") and threshold:
        raise MismatchError(
            f"{source} is quantised with {method} in 8 bits and llm_int8_threshold {threshold}: "
            "columns are then chosen by all rows of a batch, so that a tree would change the "
            "output; only llm_int8_threshold 0 can be served"
        )
    return method
