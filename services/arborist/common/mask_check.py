"""At load: does a model attend to the positions that packed attention would let it attend to?

Packed attention makes its own masks, from the sliding window that a layer passes on. A model that
says more than that in its own mask (a window kept to itself, chunks, a prefix seen both ways) gives
the same states for a few tokens and others later on, so comparing states of a short text is not
enough. Its mask is asked about the last position of the context instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig

from arborist.common.packed_attention import packed_attention
from arborist.core.errors import MismatchError

CHECKED_ATTENTION = "arborist_checked"


def register_checked_attention() -> None:
    """Makes `checked_attention` and its mask known to transformers; again is no error."""
    AttentionInterface.register(CHECKED_ATTENTION, checked_attention)
    AttentionMaskInterface.register(CHECKED_ATTENTION, last_row_seen)


def last_row_seen(
    *,
    mask_function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    config: PretrainedConfig,
    **_: Any,
) -> Tensor:
    """Takes the place of a mask: what the last position of the context sees.

    Args:
        mask_function: Of batch, head, query position and key position; True = seen.
        config: The model's.
    Returns:
        (1, 1, 1, context_length), bool, on the CPU.
    Raises:
        MismatchError: The mask depends on more than positions.
    """
    keys = torch.arange(config.get_text_config().max_position_embeddings)  # [C]
    zero = torch.tensor(0)
    try:
        seen = mask_function(zero, zero, keys[-1], keys)
    except (IndexError, RuntimeError) as error:
        raise MismatchError(
            f"the attention mask of {config.model_type} depends on more than positions, "
            "which is not supported"
        ) from error
    return seen.expand(len(keys))[None, None, None]


def checked_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Is `packed_attention`, after a look at the model's mask.

    Args:
        module: The attention layer.
        query: (1, heads, rows, width).
        key: (1, kv_heads, rows, width).
        value: (1, kv_heads, rows, width).
        attention_mask: From `last_row_seen`; None = the model makes no mask.
        sliding_window: Tokens a row sees, itself included; None = all.
        **kwargs: As for `packed_attention`.
    Returns:
        (1, rows, heads, width) and None.
    Raises:
        MismatchError: Mask and sliding window contradict each other.
    """
    if attention_mask is not None:
        seen = attention_mask[0, 0, 0]  # [C]
        first = 0 if sliding_window is None else max(0, len(seen) - sliding_window)
        if not torch.equal(seen, torch.arange(len(seen)) >= first):
            window = (
                "no sliding window" if sliding_window is None else f"a window of {sliding_window}"
            )
            raise MismatchError(
                f"{type(module).__name__} of layer {module.layer_idx} has a mask of its own "
                f"(the last position sees {int(seen.sum())} of {len(seen)} tokens, attention is "
                f"told of {window}), which is not supported"
            )
    return packed_attention(
        module, query, key, value, None, sliding_window=sliding_window, **kwargs
    )
