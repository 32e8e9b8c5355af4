"""Tiny causal language models on disk, to draft with."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

VOCAB = 61
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def tiny_model(family: str = "llama", seed: int = 0, **changes) -> PreTrainedModel:
    """A random model: full attention, or a window shorter than what the tests hold."""
    torch.manual_seed(seed)
    sizes = _SIZES | changes
    if family == "mistral":
        return MistralForCausalLM(MistralConfig(**sizes, sliding_window=4)).eval()
    if family == "gemma3":
        types = ["sliding_attention", "full_attention"]
        config = Gemma3TextConfig(**sizes, sliding_window=5, layer_types=types)
        return Gemma3ForCausalLM(config).eval()
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def write_model(folder: Path, model: PreTrainedModel) -> Path:
    """Writes a model as anyone's checkpoint; returns the folder."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:  # Sharper than random initialisation, so that ranks are clear.
                parameter.mul_(6.0)
    model.save_pretrained(folder)
    return folder


def logprobs_after(folder: Path, tokens: list[int]) -> torch.Tensor:
    """What transformers alone says after a text: log-probs, (V,)."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
    return logits.float().log_softmax(-1)
