"""One tiny checkpoint of each family, taught a text in a second or two, with a head that knows it.

A random model would do for most of what is asked here, but drafts of it are never accepted. Norms
and biases are random too, since the usual first values (1 and 0) hide a norm or a bias that is
left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.unit.target.conftest import settings
from tests.unit.target.sessions import TinyModel
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from arborist.draft.checkpoint import save_head
from arborist.draft.head import EagleHead, HeadConfig
from arborist.training.head_loss import HeadLoss

VOCAB_SIZE = 48
WINDOW = 12
CONTEXT = 512
TEXT_LENGTH = 48
MODEL_STEPS = 50
HEAD_STEPS = 40


def sizes(**more: Any) -> dict[str, Any]:
    """Sizes all families share; ids of end tokens are those of a published model's form."""
    shared = settings(vocab_size=VOCAB_SIZE, max_position_embeddings=CONTEXT, initializer_range=0.2)
    return shared | more


def _gemma3_text() -> dict[str, Any]:
    full = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1_000_000.0}
    local = {"rope_type": "default", "rope_theta": 10_000.0}
    return sizes(
        sliding_window=WINDOW,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        rope_parameters={"full_attention": full, "sliding_attention": local},
        tie_word_embeddings=True,
    )


def _llama31() -> LlamaConfig:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    return LlamaConfig(**sizes(rope_parameters=rope, tie_word_embeddings=True))


def _qwen2() -> Qwen2Config:
    window = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    return Qwen2Config(**sizes(tie_word_embeddings=True, **window))


def _qwen3() -> Qwen3Config:
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1_000_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    return Qwen3Config(**sizes(head_dim=16, rope_parameters=rope))


def _gemma2() -> Gemma2Config:
    caps = {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 20.0}
    return Gemma2Config(
        **sizes(sliding_window=WINDOW, query_pre_attn_scalar=8, tie_word_embeddings=True, **caps)
    )


def _gemma3() -> Gemma3Config:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    return Gemma3Config(
        text_config=_gemma3_text(),
        vision_config=vision,
        mm_tokens_per_image=1,
        image_token_index=40,
    )


FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    # As many KV heads as query heads, as in 7B and 13B; Vicuna is this architecture.
    "llama2": lambda: LlamaConfig(**sizes(num_key_value_heads=4)),
    "llama31": _llama31,
    "mistral": lambda: MistralConfig(**sizes(sliding_window=WINDOW)),
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3_text": lambda: Gemma3TextConfig(**_gemma3_text()),
    # As the larger ones are published: the text model inside one that also sees.
    "gemma3": _gemma3,
    "mixtral": lambda: MixtralConfig(
        **sizes(num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW)
    ),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **sizes(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, head_dim=16)
    ),
}


@dataclass(frozen=True)
class TrainedFamily:
    """A taught model on disk and a head for it."""

    model: TinyModel
    head: Path
    has_window: bool


def train_family(name: str, folder: Path) -> TrainedFamily:
    """Makes the checkpoint of a family and its head; takes seconds."""
    torch.manual_seed(7)
    model = _randomised(AutoModelForCausalLM.from_config(FAMILIES[name]()))
    _train(model)
    model.generation_config.eos_token_id = [1, 3]
    model.save_pretrained(folder / "target")
    save_head(folder / "head", _trained_head(model), dtype=torch.float32)
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    tiny = TinyModel(folder / "target", VOCAB_SIZE)
    return TrainedFamily(tiny, folder / "head", window is not None)


def texts(count: int, length: int, seed: int) -> Tensor:
    """Texts in which two tokens nearly always decide the next one, (count, length)."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(4, VOCAB_SIZE, (count, 2), generator=generator)
    for _ in range(length - 2):
        previous, last = rows[:, -2], rows[:, -1]
        ruled = 4 + (7 * last + 5 * (previous % 2)) % (VOCAB_SIZE - 4)
        free = torch.randint(4, VOCAB_SIZE, (count,), generator=generator)
        is_free = torch.rand(count, generator=generator) < 0.1
        rows = torch.cat([rows, torch.where(is_free, free, ruled)[:, None]], 1)
    return rows


@torch.no_grad()
def _randomised(model: PreTrainedModel) -> PreTrainedModel:
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def _train(model: PreTrainedModel) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.0)
    model.train()
    for step in range(MODEL_STEPS):
        tokens = texts(12, TEXT_LENGTH, step)
        logits = model(input_ids=tokens, token_type_ids=None, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().requires_grad_(False)


def _trained_head(model: PreTrainedModel) -> EagleHead:
    config = HeadConfig(
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=CONTEXT,
    )
    head = EagleHead(config)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2, weight_decay=0.0)
    loss_of = HeadLoss(num_passes=2, noise=0.0)
    lm_head = model.get_output_embeddings().weight.detach()
    embedding = model.get_input_embeddings().weight.detach()
    for step in range(HEAD_STEPS):
        tokens = texts(12, TEXT_LENGTH, 1000 + step)
        features = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
        weights = torch.ones(tokens.shape)
        loss, _ = loss_of(head, lm_head, embedding, tokens, features, weights)
        (loss / tokens.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return head.eval()
