"""The target to train: a fresh Llama, or a warm start with some layers left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from arborist.training.muon import Muon
from arborist.training.replicas import Replicas


def fresh_target(config: LlamaConfig, seed: int = 0) -> LlamaForCausalLM:
    """A randomly initialised fp32 model."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).float()


def warm_target(path: Path, keep_layers: Sequence[int] | None = None) -> LlamaForCausalLM:
    """An existing model in fp32, with only the layers named.

    Args:
        path: Hugging Face folder of a Llama model.
        keep_layers: indices of the layers that stay, ascending; None keeps all.
    Raises:
        ValueError: an index outside the model, or not ascending.
    """
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    if keep_layers is None:
        return model
    count = len(model.model.layers)
    if any(not 0 <= index < count for index in keep_layers):
        raise ValueError(f"keep-layers {list(keep_layers)}: the model has layers 0..{count - 1}")
    if list(keep_layers) != sorted(set(keep_layers)):
        raise ValueError(f"keep-layers {list(keep_layers)}: must be ascending, without repeats")
    model.model.layers = torch.nn.ModuleList(model.model.layers[index] for index in keep_layers)
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
    model.config.num_hidden_layers = len(keep_layers)
    return model


def freeze_bottom(model: LlamaForCausalLM, num_layers: int) -> None:
    """Cut the gradient above the lowest layers: they and the input side of the embedding stay.

    A tied embedding still learns as the output matrix.

    Args:
        model: to change.
        num_layers: layers to freeze, below the model's own count.
    Raises:
        ValueError: nothing would be left to train.
    """
    if not 0 <= num_layers < len(model.model.layers):
        raise ValueError(
            f"freeze-layers {num_layers}: the model has {len(model.model.layers)} layers"
        )
    if num_layers:
        model.model.layers[num_layers].register_forward_pre_hook(_detach_input)


def _detach_input(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[object, ...]:
    return (inputs[0].detach(), *inputs[1:])


def make_optimizer(
    model: torch.nn.Module,
    muon_lr: float = 3e-3,
    adam_lr: float = 1e-3,
    weight_decay: float = 0.0,
    replicas: Replicas | None = None,
) -> Muon:
    """Muon for the matrices of the layers, AdamW for embeddings, norms and biases."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if is_matrix else others).append(parameter)
    return Muon(
        [
            {"params": matrices, "lr": muon_lr, "use_muon": True, "weight_decay": weight_decay},
            {"params": others, "lr": adam_lr, "use_muon": False, "weight_decay": 0.0},
        ],
        run_each=(replicas or Replicas(model, 1)).map,
    )


def export_target(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    max_shard_size: str = "13MB",
) -> None:
    """Write a bf16 Hugging Face folder: config, generation config, shards with index, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("model*.safetensors*"):
        stale.unlink()
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.tie_weights()
    copy.generation_config.bos_token_id = tokenizer.bos_token_id
    copy.generation_config.eos_token_id = tokenizer.eos_token_id
    copy.generation_config.pad_token_id = tokenizer.pad_token_id
    copy.to(torch.bfloat16).save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
