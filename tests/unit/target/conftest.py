"""Tiny random models of several families, and engines over them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from tests.unit.target.sessions import TinyModel
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen3Config,
)

from arborist.common.causal_model import CausalModel, load_model
from arborist.core.features import FeatureSpec
from arborist.target.engine import HfTargetEngine
from arborist.target.kv import FeatureRetention, KvPool
from arborist.target.prefix_cache import PrefixCache

VOCAB_SIZE = 96
# Wide logits: two tokens hardly ever tie, so equality of tokens is a fair question.
SPREAD = 0.3

MakeEngine: TypeAlias = Callable[..., HfTargetEngine]


def save(folder: Path, config: PretrainedConfig) -> TinyModel:
    """Writes a random model of a configuration."""
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return TinyModel(folder, config.vocab_size)


def settings(**more: object) -> dict[str, object]:
    """Sizes all families share."""
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": SPREAD,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
        **more,
    }


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Full attention, two KV heads for four query heads, tied embeddings."""
    config = LlamaConfig(**settings(tie_word_embeddings=True))
    return save(tmp_path_factory.mktemp("llama"), config)


@pytest.fixture(scope="session")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Every layer sees a window of eight tokens."""
    return save(tmp_path_factory.mktemp("mistral"), MistralConfig(**settings(sliding_window=8)))


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Norms on queries and keys; the last layer has a window of eight tokens, the others none."""
    config = Qwen3Config(**settings(use_sliding_window=True, sliding_window=8, max_window_layers=2))
    return save(tmp_path_factory.mktemp("qwen3"), config)


@pytest.fixture(params=["llama", "mistral", "qwen3"])
def tiny(request: pytest.FixtureRequest) -> TinyModel:
    """Each family in turn."""
    model: TinyModel = request.getfixturevalue(request.param)
    return model


@pytest.fixture
def device() -> str:
    """Where the model lies; modules that run on more than the CPU parametrise it."""
    return "cpu"


@pytest.fixture(scope="session")
def loaded() -> Callable[[Path, str, str], CausalModel]:
    """Loads each model once; what a test changes lies in its pool."""

    @cache
    def load(folder: Path, device: str, dtype: str) -> CausalModel:
        return load_model(folder, device=device, dtype=dtype)

    return load


@pytest.fixture
def make_engine(device: str, loaded: Callable[[Path, str, str], CausalModel]) -> MakeEngine:
    """Makes engines on the device, each with an empty pool."""

    def make(
        tiny: TinyModel,
        kv_capacity_tokens: int = 4096,
        feature_retention: FeatureRetention = "all",
        dtype: str = "float32",
        prefix_cache_tokens: int = 0,
    ) -> HfTargetEngine:
        model = loaded(tiny.folder, device, dtype)
        pool = KvPool(
            model.kv_layout, kv_capacity_tokens, model.device, model.dtype, feature_retention
        )
        prefixes = None
        if prefix_cache_tokens:
            prefixes = PrefixCache(
                model.kv_layout,
                prefix_cache_tokens,
                model.device,
                model.dtype,
                model.feature_layout(FeatureSpec()),
            )
        return HfTargetEngine(model, pool, prefixes)

    return make
