"""Tiny checkpoints of every format heads are published in: keys and config.json as they list them.

Sources: SafeAILab/EAGLE, SGLang, SpecForge, speculators and vLLM, as of late 2025.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.unit.draft.naive_formats import NaiveFormat, as_arrays
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

HIDDEN, VOCAB, INNER, LAYERS = 32, 61, 40, 8
HEADS, KV_HEADS, WIDTH = 4, 2, 8
DRAFT_IDS = [3, 5, 6, 11, 12, 17, 20, 21, 22, 30, 31, 33, 40, 41, 47, 52, 53, 58, 59, 60]

Tensors = dict[str, Tensor]
Config = dict[str, Any]


@dataclass(frozen=True)
class Published:
    """A checkpoint as somebody would publish it.

    Attributes:
        tensors: Of its file.
        config: config.json.
        naive: Its own forward.
        layers: Target layers whose inputs it is fed; None = the final norm's output.
        pickled: Whether it comes as pytorch_model.bin.
    """

    tensors: Tensors
    config: Config
    naive: NaiveFormat
    layers: tuple[int, ...] | None = None
    pickled: bool = False

    def write(self, folder: Path) -> Path:
        """Writes the folder."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        if self.pickled:
            torch.save(self.tensors, folder / "pytorch_model.bin")
        else:
            save_file(self.tensors, folder / "model.safetensors")
        return folder


class Target:
    """A tiny random Llama and the two tables heads borrow."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=256,
            tie_word_embeddings=False,
        )
        self.model = LlamaForCausalLM(config).eval()
        self.embedding = self.model.model.embed_tokens.weight.detach()
        self.lm_head = self.model.lm_head.weight.detach()

    def write(self, folder: Path) -> Path:
        """Writes the folder."""
        self.model.save_pretrained(folder)
        return folder


class Weights:
    """Random tensors, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def matrix(self, rows: int, columns: int) -> Tensor:
        """A matrix that keeps magnitudes."""
        return torch.randn(rows, columns, generator=self._generator) / columns**0.5

    def vector(self, size: int, mean: float = 0.0) -> Tensor:
        """A bias, or a norm's weight around 1."""
        return mean + 0.2 * torch.randn(size, generator=self._generator)

    def layer(self, name: str, hidden: int = HIDDEN, reads: int = 1, kv: int = KV_HEADS) -> Tensors:
        """A decoder layer without its input norm."""
        made = {
            f"{name}.self_attn.q_proj.weight": self.matrix(HEADS * WIDTH, reads * hidden),
            f"{name}.self_attn.k_proj.weight": self.matrix(kv * WIDTH, reads * hidden),
            f"{name}.self_attn.v_proj.weight": self.matrix(kv * WIDTH, reads * hidden),
            f"{name}.self_attn.o_proj.weight": self.matrix(hidden, HEADS * WIDTH),
            f"{name}.mlp.gate_proj.weight": self.matrix(INNER, hidden),
            f"{name}.mlp.up_proj.weight": self.matrix(INNER, hidden),
            f"{name}.mlp.down_proj.weight": self.matrix(hidden, INNER),
            f"{name}.post_attention_layernorm.weight": self.vector(hidden, 1.0),
        }
        if reads == 2:
            made[f"{name}.hidden_norm.weight"] = self.vector(hidden, 1.0)
            made[f"{name}.input_layernorm.weight"] = self.vector(hidden, 1.0)
        return made

    def eagle3(self, layer: str, hidden: int = HIDDEN) -> Tensors:
        """What every EAGLE-3 file holds besides its vocabulary."""
        return {
            **self.layer(layer, hidden, reads=2),
            "fc.weight": self.matrix(hidden, 3 * HIDDEN),
            "norm.weight": self.vector(hidden, 1.0),
        }


def llama_config(**changes: Any) -> Config:
    """The LlamaConfig fields every format has somewhere."""
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCAB,
        "max_position_embeddings": 256,
        "hidden_act": "silu",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float16",
    }
    return {**fields, **changes}


def vocabulary_tensors() -> Tensors:
    """`d2t` and `t2d` of DRAFT_IDS."""
    ids = torch.tensor(DRAFT_IDS)
    members = torch.zeros(VOCAB, dtype=torch.bool)
    members[ids] = True
    return {"d2t": ids - torch.arange(len(ids)), "t2d": members}


def naive(tensors: Tensors, target: Target, layer: str, fc: str = "fc", **changes) -> NaiveFormat:
    """The forward of a head that borrows both tables, unless changed."""
    fields: dict[str, Any] = {
        "heads": HEADS,
        "kv_heads": KV_HEADS,
        "width": WIDTH,
        "embedding": target.embedding.double().numpy(),
        "lm_head": target.lm_head.double().numpy(),
        "ids": list(range(VOCAB)),
    }
    return NaiveFormat(as_arrays(tensors), layer, fc, **{**fields, **changes})


def draft_head(tensors: Tensors) -> Config:
    """The naive forward's fields for an own LM head over DRAFT_IDS."""
    return {
        "lm_head": tensors["lm_head.weight"].double().numpy(),
        "ids": DRAFT_IDS,
        "is_eagle3": True,
        "output_norm": "norm",
    }


def official_eagle2(target: Target) -> Published:
    """With `fc.bias` (config silent about it) and its embedding, as Vicuna's."""
    make = Weights(1)
    tensors = {
        "embed_tokens.weight": target.embedding.clone(),
        "fc.weight": make.matrix(HIDDEN, 2 * HIDDEN),
        "fc.bias": make.vector(HIDDEN),
        **make.layer("layers.0"),
    }
    return Published(tensors, llama_config(), naive(tensors, target, "layers.0"))


def official_eagle2_bare(target: Target) -> Published:
    """Without bias and embedding, as many KV heads as heads, pickled."""
    make = Weights(2)
    tensors = {
        "fc.weight": make.matrix(HIDDEN, 2 * HIDDEN),
        **make.layer("layers.0", kv=HEADS),
        "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(WIDTH // 2),
    }
    config = llama_config(bias=False, rope_theta=5e5)
    del config["num_key_value_heads"]
    forward = naive(tensors, target, "layers.0", kv_heads=HEADS, theta=5e5)
    return Published(tensors, config, forward, pickled=True)


def official_eagle2_qwen2(target: Target) -> Published:
    """`qkv_bias` and an explicit `head_dim` that is not hidden / heads."""
    make = Weights(3)
    wide = 12
    tensors = {
        "fc.weight": make.matrix(HIDDEN, 2 * HIDDEN),
        "fc.bias": make.vector(HIDDEN),
        **make.layer("layers.0"),
    }
    for kind, rows in (("q", HEADS * wide), ("k", KV_HEADS * wide), ("v", KV_HEADS * wide)):
        tensors[f"layers.0.self_attn.{kind}_proj.weight"] = make.matrix(rows, HIDDEN)
        tensors[f"layers.0.self_attn.{kind}_proj.bias"] = make.vector(rows)
    tensors["layers.0.self_attn.o_proj.weight"] = make.matrix(HIDDEN, HEADS * wide)
    config = llama_config(
        architectures=["Qwen2ForCausalLM"], qkv_bias=True, head_dim=wide, bias=True
    )
    return Published(tensors, config, naive(tensors, target, "layers.0", width=wide), pickled=True)


def official_eagle3(target: Target) -> Published:
    """Pickled, with a draft vocabulary; its config speaks of 40 layers, as a published one does."""
    make = Weights(4)
    tensors = {
        **vocabulary_tensors(),
        **make.eagle3("midlayer"),
        "lm_head.weight": make.matrix(len(DRAFT_IDS), HIDDEN),
    }
    config = llama_config(draft_vocab_size=len(DRAFT_IDS), num_hidden_layers=40)
    forward = naive(tensors, target, "midlayer", **draft_head(tensors))
    return Published(tensors, config, forward, (2, 4, 5), pickled=True)


def official_eagle3_narrow(target: Target) -> Published:
    """A head narrower than its target, with its own embedding and all ids in its vocabulary."""
    make = Weights(5)
    hidden = 24
    tensors = {
        **make.eagle3("midlayer", hidden),
        "embed_tokens.weight": make.matrix(VOCAB, hidden),
        "lm_head.weight": make.matrix(VOCAB, hidden),
        "d2t": torch.zeros(VOCAB, dtype=torch.int64),
        "t2d": torch.ones(VOCAB, dtype=torch.bool),
    }
    config = llama_config(
        hidden_size=hidden, target_hidden_size=HIDDEN, head_dim=WIDTH, draft_vocab_size=VOCAB
    )
    forward = naive(
        tensors,
        target,
        "midlayer",
        **{
            **draft_head(tensors),
            "ids": list(range(VOCAB)),
            "embedding": tensors["embed_tokens.weight"].double().numpy(),
        },
    )
    return Published(tensors, config, forward, (2, 4, 5))


def sglang_eagle2(target: Target) -> Published:
    """The official tensors and an LM head that SGLang never reads."""
    tensors = {
        **official_eagle2(target).tensors,
        "lm_head.weight": Weights(6).matrix(VOCAB, HIDDEN),
    }
    config = llama_config(architectures=["LlamaForCausalLMEagle"])
    return Published(tensors, config, naive(tensors, target, "layers.0"))


def sglang_eagle3(target: Target) -> Published:
    """The draft vocabulary as `hot_token_id`."""
    base = official_eagle3(target)
    tensors = {k: v for k, v in base.tensors.items() if k not in ("d2t", "t2d")}
    tensors["hot_token_id"] = torch.tensor(DRAFT_IDS)
    config = llama_config(architectures=["LlamaForCausalLMEagle3"], draft_vocab_size=len(DRAFT_IDS))
    return Published(tensors, config, base.naive, (2, 4, 5))


def sglang_eagle3_borrowing(target: Target) -> Published:
    """`draft_vocab_size: null`: the target's LM head is used."""
    base = official_eagle3(target)
    dropped = ("d2t", "t2d", "lm_head.weight")
    tensors = {k: v for k, v in base.tensors.items() if k not in dropped}
    config = llama_config(architectures=["LlamaForCausalLMEagle3"], draft_vocab_size=None)
    forward = naive(tensors, target, "midlayer", is_eagle3=True, output_norm="norm")
    return Published(tensors, config, forward, (2, 4, 5))


def eagle3_without_lm_head(target: Target) -> Published:
    """A draft vocabulary, but the target's rows of it."""
    base = official_eagle3(target)
    tensors = {k: v for k, v in base.tensors.items() if k != "lm_head.weight"}
    forward = naive(
        tensors,
        target,
        "midlayer",
        is_eagle3=True,
        output_norm="norm",
        ids=DRAFT_IDS,
        lm_head=target.lm_head[DRAFT_IDS].double().numpy(),
    )
    return Published(tensors, base.config, forward, (2, 4, 5))


def specforge(target: Target) -> Published:
    """Norms per fused layer, a normed output fed back, and layers by their outputs."""
    make = Weights(7)
    tensors = {
        **vocabulary_tensors(),
        **make.eagle3("midlayer"),
        **{f"fc_norm.{i}.weight": make.vector(HIDDEN, 1.0) for i in range(3)},
        "lm_head.weight": make.matrix(len(DRAFT_IDS), HIDDEN),
    }
    config = llama_config(
        architectures=["LlamaForCausalLMEagle3"],
        draft_vocab_size=len(DRAFT_IDS),
        target_hidden_size=HIDDEN,
        head_dim=WIDTH,
        fc_norm=True,
        norm_output=True,
        eagle_config={
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": [0, 3, 6],
        },
        torch_dtype="bfloat16",
    )
    forward = naive(
        tensors,
        target,
        "midlayer",
        **draft_head(tensors),
        feed_normed=True,
        feature_norms=[f"fc_norm.{i}" for i in range(3)],
    )
    return Published(tensors, config, forward, (1, 4, 7))


def _speculators_config(layer: Config, **changes: Any) -> Config:
    return {
        "speculators_model_type": "eagle3",
        "architectures": ["Eagle3Speculator"],
        "draft_vocab_size": len(DRAFT_IDS),
        "norm_before_residual": False,
        "target_hidden_size": None,
        "transformer_layer_config": layer,
        "speculators_config": {
            "algorithm": "eagle3",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
            "default_proposal_method": "greedy",
            "verifier": {"name_or_path": "org/target", "architectures": ["LlamaForCausalLM"]},
        },
        "torch_dtype": "bfloat16",
        **changes,
    }


def speculators_eagle3(target: Target) -> Published:
    """`layers.0.` names, the residual normed, llama3 rope scaling, layers by their inputs."""
    make = Weights(8)
    tensors = {
        **vocabulary_tensors(),
        **make.eagle3("layers.0"),
        "embed_tokens.weight": target.embedding.clone(),
        "lm_head.weight": make.matrix(len(DRAFT_IDS), HIDDEN),
    }
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    layer = llama_config(head_dim=WIDTH, rope_theta=5e5, rope_scaling=scaling)
    del layer["architectures"]
    config = _speculators_config(
        layer, norm_before_residual=True, eagle_aux_hidden_state_layer_ids=[1, 3, 6]
    )
    forward = naive(
        tensors,
        target,
        "layers.0",
        **draft_head(tensors),
        residual_normed=True,
        theta=5e5,
        llama3=(8.0, 1.0, 4.0, 64),
    )
    return Published(tensors, config, forward, (1, 3, 6))


def speculators_eagle3_qwen3(target: Target) -> Published:
    """A Qwen3 layer with normed queries and keys, and one norm before `fc`."""
    make = Weights(9)
    tensors = {
        **vocabulary_tensors(),
        **make.eagle3("layers.0"),
        "input_norm.weight": make.vector(3 * HIDDEN, 1.0),
        "layers.0.self_attn.q_norm.weight": make.vector(WIDTH, 1.0),
        "layers.0.self_attn.k_norm.weight": make.vector(WIDTH, 1.0),
        "lm_head.weight": make.matrix(len(DRAFT_IDS), HIDDEN),
    }
    layer = llama_config(model_type="qwen3", head_dim=WIDTH)
    layer["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6}
    config = _speculators_config(
        layer, architectures=["Eagle3DraftModel"], norm_before_fc=True, norm_output=True
    )
    forward = naive(
        tensors,
        target,
        "layers.0",
        **draft_head(tensors),
        theta=1e6,
        feed_normed=True,
        feature_norms=["input_norm"],
    )
    return Published(tensors, config, forward, (2, 4, 5))


def speculators_eagle1(target: Target) -> Published:
    """The removed EAGLE-1 format with its extra norms; the config is wrong about the bias."""
    make = Weights(10)
    tensors = {
        "fusion_fc.weight": make.matrix(HIDDEN, 2 * HIDDEN),
        "fusion_fc.bias": make.vector(HIDDEN),
        **make.layer("transformer"),
        "transformer.input_layernorm.weight": make.vector(HIDDEN, 1.0),
        "embedding_layernorm.weight": make.vector(HIDDEN, 1.0),
        "pre_lm_head_layernorm.weight": make.vector(HIDDEN, 1.0),
    }
    config = {
        "speculators_model_type": "eagle",
        "architectures": ["EagleSpeculator", "LlamaDecoderLayer"],
        "transformer_layer_architecture": "LlamaDecoderLayer",
        "transformer_layer_config": llama_config(),
        "layernorms": True,
        "fusion_bias": False,
    }
    forward = naive(
        tensors,
        target,
        "transformer",
        "fusion_fc",
        embed_norm="embedding_layernorm",
        input_norm="transformer.input_layernorm",
        output_norm="pre_lm_head_layernorm",
    )
    return Published(tensors, config, forward)


def speculators_eagle1_plain(target: Target) -> Published:
    """The removed EAGLE-1 format of an official head."""
    make = Weights(11)
    tensors = {
        "fusion_fc.weight": make.matrix(HIDDEN, 2 * HIDDEN),
        **make.layer("transformer"),
    }
    config = {
        "speculators_model_type": "eagle",
        "architectures": ["EagleSpeculator"],
        "transformer_layer_config": llama_config(),
        "layernorms": False,
        "fusion_bias": False,
    }
    return Published(tensors, config, naive(tensors, target, "transformer", "fusion_fc"))


def hass(target: Target) -> Published:
    """HASS's names of the extra norms."""
    make = Weights(12)
    tensors = {
        "fc.weight": make.matrix(HIDDEN, 2 * HIDDEN),
        **make.layer("layers.0"),
        "embed_layernorm.weight": make.vector(HIDDEN, 1.0),
        "hidden_layernorm.weight": make.vector(HIDDEN, 1.0),
        "lm_head_layernorm.weight": make.vector(HIDDEN, 1.0),
    }
    forward = naive(
        tensors,
        target,
        "layers.0",
        embed_norm="embed_layernorm",
        input_norm="hidden_layernorm",
        output_norm="lm_head_layernorm",
    )
    return Published(tensors, llama_config(bias=False), forward, pickled=True)


def vllm_wrapper(target: Target) -> Published:
    """The official head inside of a wrapper, with the target's LM head."""
    make = Weights(13)
    tensors = {
        "fc.weight": make.matrix(HIDDEN, 2 * HIDDEN),
        "model.model.embed_tokens.weight": target.embedding.clone(),
        **make.layer("model.model.layers.0"),
        "lm_head.weight": target.lm_head.clone(),
    }
    config = {"model_type": "eagle", "model": llama_config(), "vocab_size": VOCAB}
    return Published(tensors, config, naive(tensors, target, "model.model.layers.0"))


def vllm_wrapper_mapped(target: Target) -> Published:
    """A wrapper with norms, a map of tokens, and an LM head of its own."""
    make = Weights(14)
    lm_head = make.matrix(len(DRAFT_IDS), HIDDEN)
    tensors = {
        "fc.weight": make.matrix(HIDDEN, 2 * HIDDEN),
        "fc.bias": make.vector(HIDDEN),
        **make.layer("model.layers.0"),
        "model.layers.0.input_layernorm.weight": make.vector(HIDDEN, 1.0),
        "model.norm.weight": make.vector(HIDDEN, 1.0),
        "lm_head.weight": lm_head,
        "token_map": torch.tensor(DRAFT_IDS),
    }
    config = {
        "model_type": "eagle",
        "model": llama_config(),
        "vocab_size": VOCAB,
        "truncated_vocab_size": len(DRAFT_IDS),
    }
    forward = naive(
        tensors,
        target,
        "model.layers.0",
        input_norm="model.layers.0.input_layernorm",
        output_norm="model.norm",
        feed_normed=True,
        ids=DRAFT_IDS,
        lm_head=lm_head.double().numpy(),
    )
    return Published(tensors, config, forward)


def wrapped_eagle3(target: Target) -> Published:
    """An EAGLE-3 head below `model.`, as vLLM and other trainers name their modules."""
    base = speculators_eagle3_qwen3(target)
    top = ("lm_head.weight", "d2t", "t2d")
    tensors = {k if k in top else f"model.{k}": v for k, v in base.tensors.items()}
    layer = base.config["transformer_layer_config"]
    config = {
        **layer,
        "architectures": ["Eagle3LlamaForCausalLM"],
        "draft_vocab_size": len(DRAFT_IDS),
        "norm_output": True,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": []},
    }
    return Published(tensors, config, base.naive, base.layers)


FORMATS: dict[str, Callable[[Target], Published]] = {
    one.__name__: one
    for one in (
        official_eagle2,
        official_eagle2_bare,
        official_eagle2_qwen2,
        official_eagle3,
        official_eagle3_narrow,
        sglang_eagle2,
        sglang_eagle3,
        sglang_eagle3_borrowing,
        eagle3_without_lm_head,
        specforge,
        speculators_eagle3,
        speculators_eagle3_qwen3,
        speculators_eagle1,
        speculators_eagle1_plain,
        hass,
        vllm_wrapper,
        vllm_wrapper_mapped,
        wrapped_eagle3,
    )
}
