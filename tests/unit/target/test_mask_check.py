"""Models whose own mask says more than their sliding window are found at load."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.target.conftest import save, settings
from transformers import LlamaConfig, Qwen2MoeConfig
from transformers.masking_utils import chunked_causal_mask_function, padding_mask_function

from arborist.common.causal_model import load_model
from arborist.common.mask_check import last_row_seen
from arborist.core.errors import MismatchError

MOE: dict[str, Any] = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}


def qwen2_moe(sliding_window: int) -> Qwen2MoeConfig:
    """A model that makes a window mask, but tells attention nothing of its window."""
    return Qwen2MoeConfig(
        **settings(
            **MOE, use_sliding_window=True, sliding_window=sliding_window, max_window_layers=1
        )
    )


def test_a_window_that_is_not_passed_on_is_refused(tmp_path: Path) -> None:
    """Six tokens show no difference, but the last position of the context would see others."""
    tiny = save(tmp_path / "model", qwen2_moe(16))

    with pytest.raises(MismatchError, match=r"Qwen2MoeAttention .* sees 16 of 128") as caught:
        load_model(tiny.folder, device="cpu", dtype="float32")

    assert "\n" not in caught.value.message


def test_chunks_show_in_what_the_last_position_sees() -> None:
    """128 positions in chunks of 48: the last one sees its own chunk of 32 alone."""
    mask = chunked_causal_mask_function(48, torch.zeros(1, dtype=torch.int64))

    seen = last_row_seen(mask_function=mask, config=LlamaConfig(max_position_embeddings=128))

    assert seen.shape == (1, 1, 1, 128)
    assert seen[0, 0, 0].nonzero()[:, 0].tolist() == list(range(96, 128))


def test_a_mask_that_depends_on_the_text_is_refused() -> None:
    """A mask that looks something up for each position of the text knows none beyond it."""
    mask = padding_mask_function(torch.ones((1, 6), dtype=torch.bool))

    with pytest.raises(MismatchError, match="llama depends on more than positions"):
        last_row_seen(mask_function=mask, config=LlamaConfig(max_position_embeddings=128))


def test_a_window_longer_than_the_context_is_no_window(tmp_path: Path) -> None:
    """What no position can notice is no reason to refuse a model."""
    tiny = save(tmp_path / "model", qwen2_moe(128))

    assert load_model(tiny.folder, device="cpu", dtype="float32").info.num_layers == 3
