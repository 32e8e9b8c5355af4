"""A tiny random head, the part of a target it borrows from, and the devices to test on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from arborist.draft.checkpoint import save_head
from arborist.draft.engine import EagleDraftEngine, load_draft
from arborist.draft.head import EagleHead, HeadConfig

HIDDEN = 32
VOCAB = 61


def tiny_config(**changes) -> HeadConfig:
    """Shape of the tiny head."""
    fields = {
        "hidden_size": HIDDEN,
        "intermediate_size": 40,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
    }
    return HeadConfig(**{**fields, **changes})


def random_head(config: HeadConfig, seed: int = 0) -> EagleHead:
    """A head whose norms, biases and matrices are all random."""
    head = EagleHead(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.2
            parameter.copy_(scale * noise + ("layernorm" in name))
    return head.eval()


def random_table(seed: int) -> Tensor:
    """A random (V, H) table."""
    return 0.5 * torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(seed))


def write_target(folder: Path, embedding: Tensor, lm_head: Tensor | None = None, **config) -> Path:
    """Writes the files of a target that a draft reads, and one it must not need."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": torch.ones(1)}
    if lm_head is not None:
        tensors["lm_head.weight"] = lm_head
    save_file(tensors, folder / "model.safetensors")
    fields = {
        "hidden_size": embedding.shape[1],
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": 128,
        "eos_token_id": [2, 3],
        "tie_word_embeddings": lm_head is None,
    }
    (folder / "config.json").write_text(json.dumps({**fields, **config}))
    return folder


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Every device of this machine."""
    return request.param


@pytest.fixture
def target_path(tmp_path: Path) -> Path:
    """An untied target."""
    return write_target(tmp_path / "target", random_table(1), random_table(2))


@pytest.fixture
def head_path(tmp_path: Path) -> Path:
    """A head of one layer with its own embedding, in fp32."""
    path = tmp_path / "head"
    save_head(path, random_head(tiny_config()), embed_tokens=random_table(1), dtype=torch.float32)
    return path


@pytest.fixture
def engine(head_path: Path, target_path: Path, device: str) -> EagleDraftEngine:
    """The engine under test, with room for a few sessions."""
    return load_draft(
        head_path, target_path, device=device, dtype="float32", kv_capacity_tokens=4000
    )
