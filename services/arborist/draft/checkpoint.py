"""EAGLE heads on disk: the official EAGLE-1/2 format, decided by tensor names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from arborist.common.model_files import CONFIG, SINGLE_FILE, ModelFiles, tensor_digest
from arborist.core.errors import MismatchError
from arborist.draft.head import EagleHead, HeadConfig

EMBEDDING = "embed_tokens.weight"
LM_HEAD_SUFFIX = "lm_head.weight"


class HeadFormat(Enum):
    """Layouts of a head's tensors, told apart by their names alone."""

    EAGLE_2 = "EAGLE-1/2"
    EAGLE_3 = "EAGLE-3"
    VLLM_WRAPPER = "vLLM wrapper (model.*)"
    SPECULATORS = "speculators (fusion_fc.*, transformer.*)"


@dataclass(frozen=True, slots=True)
class TargetVocabulary:
    """What a draft borrows from its target, and what it must agree with.

    Attributes:
        hidden_size: Width of the target's features.
        vocab_size: Number of token ids.
        context_length: Longest sequence, in tokens.
        eos_token_ids: Ids that end an output.
        embed_tokens: (V, H), as stored.
        lm_head: (V, H), as stored; the same tensor as embed_tokens when tied.
        embedding_digest: SHA-256 of embed_tokens as stored.
    """

    hidden_size: int
    vocab_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    embed_tokens: Tensor
    lm_head: Tensor
    embedding_digest: str


def load_head(
    path: str | Path, *, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[EagleHead, Tensor | None]:
    """Loads a head, whatever its target.

    Args:
        path: Folder with config.json and model.safetensors (or its index), or a hub name.
        revision: Branch, tag or commit of a hub name.
        dtype: Element type of the returned weights.
    Returns:
        The head on the CPU, in evaluation mode, and its own embedding table (V, H) when the file
        carries one; published heads do, and it is a copy of the target's.
    Raises:
        InvalidArgumentError: There is no such model.
        MismatchError: Another format, an unknown, missing or misshapen tensor, or a config.json
            that does not describe a head; the message names it.
    """
    return read_head(ModelFiles(path, revision), dtype)


def read_head(files: ModelFiles, dtype: torch.dtype) -> tuple[EagleHead, Tensor | None]:
    """Loads a head from opened files; see `load_head`."""
    names = set(files.shards)
    q_width = None
    if "layers.0.self_attn.q_proj.weight" in names:
        q_width = files.read("layers.0.self_attn.q_proj.weight")[0].shape[-1]
    config = parse_head_config(files.config, names, files.source)
    found = detect_format(names, q_width == 2 * config.hidden_size)
    if found is not HeadFormat.EAGLE_2:
        raise MismatchError(
            f"{files.source} is a head in the {found.value} format: "
            f"only {HeadFormat.EAGLE_2.value} heads are supported"
        )
    with torch.device("meta"):
        head = EagleHead(config)
    expected = head.state_dict()
    _check_names(names, set(expected), files.source)
    state = {name: files.read(name)[0] for name in expected}
    for name, tensor in state.items():
        _check_shape(name, tensor, tuple(expected[name].shape), "config.json")
    # The rotary table is no part of the file: build it for real, then fill the weights in.
    with torch.device("cpu"):
        head = EagleHead(config)
    head.load_state_dict(state)
    embedding = None
    if EMBEDDING in names:
        embedding = files.read(EMBEDDING)[0]
        _check_shape(EMBEDDING, embedding, (config.vocab_size, config.hidden_size), "config.json")
    return head.to(dtype).eval(), embedding


def detect_format(names: set[str], wide_query: bool) -> HeadFormat:
    """Decides which layout the tensors have.

    Args:
        names: Every tensor name of the file.
        wide_query: Whether layer 0's query reads two widths, [embedding ; state].
    """
    if wide_query or "d2t" in names or any(name.startswith("midlayer.") for name in names):
        return HeadFormat.EAGLE_3
    if any(name.startswith("model.") for name in names):
        return HeadFormat.VLLM_WRAPPER
    if any(name.startswith(("fusion_fc.", "transformer.")) for name in names):
        return HeadFormat.SPECULATORS
    return HeadFormat.EAGLE_2


def parse_head_config(raw: dict[str, Any], names: set[str], source: str) -> HeadConfig:
    """Reads an official config.json; biases are decided by the tensors, not by its keys.

    Args:
        raw: config.json.
        names: Every tensor name of the file.
        source: Folder or hub name, for messages.
    Raises:
        MismatchError: A field is missing or out of range.
    """
    try:
        heads = int(raw["num_attention_heads"])
        hidden = int(raw["hidden_size"])
        rope = raw.get("rope_parameters") or {}
        return HeadConfig(
            hidden_size=hidden,
            intermediate_size=int(raw["intermediate_size"]),
            num_attention_heads=heads,
            num_key_value_heads=int(raw.get("num_key_value_heads") or heads),
            head_dim=int(raw.get("head_dim") or hidden // max(heads, 1)),
            vocab_size=int(raw["vocab_size"]),
            num_layers=int(raw.get("num_hidden_layers", 1)),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
            rope_linear_factor=_rope_linear_factor(raw.get("rope_scaling") or rope),
            max_position_embeddings=int(raw.get("max_position_embeddings", 2048)),
            hidden_act=str(raw.get("hidden_act", "silu")),
            bias="fc.bias" in names,
            qkv_bias="layers.0.self_attn.q_proj.bias" in names,
        )
    except KeyError as error:
        raise MismatchError(f"config.json of {source} has no {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise MismatchError(f"config.json of {source}: {error}") from None


def _rope_linear_factor(scaling: dict[str, Any]) -> float:
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return 1.0
    if kind == "linear":
        return float(scaling["factor"])
    raise ValueError(f"rope scaling = {kind}: must be default or linear")


def _check_names(names: set[str], expected: set[str], source: str) -> None:
    missing = sorted(expected - names)
    if missing:
        raise MismatchError(
            f"head tensor {missing[0]} is missing from {source}{_others(missing)}",
            metadata={"tensor": missing[0]},
        )
    unknown = sorted(names - expected - {EMBEDDING})
    if unknown:
        raise MismatchError(
            f"head tensor {unknown[0]} in {source} is unknown{_others(unknown)}",
            metadata={"tensor": unknown[0]},
        )


def _others(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], authority: str) -> None:
    if tuple(tensor.shape) != shape:
        raise MismatchError(
            f"head tensor {name} has shape {list(tensor.shape)}: {authority} needs {list(shape)}",
            metadata={"tensor": name},
        )
    if not tensor.is_floating_point():
        raise MismatchError(
            f"head tensor {name} has dtype {tensor.dtype}: must be floating point",
            metadata={"tensor": name},
        )


def load_target_vocabulary(path: str | Path, *, revision: str | None = None) -> TargetVocabulary:
    """Loads the target's embedding and LM head, and nothing else of its weights.

    Args:
        path: Folder or hub name of the target.
        revision: Branch, tag or commit of a hub name.
    Raises:
        InvalidArgumentError: There is no such model.
        MismatchError: No safetensors, no such tensors, or shapes that contradict config.json.
    """
    files = ModelFiles(path, revision)
    config = files.config.get("text_config") or files.config
    for name in ("hidden_size", "vocab_size"):
        if not isinstance(config.get(name), int):
            raise MismatchError(f"config.json of {files.source} has no {name}")
    embedding = files.read(files.embedding_name())[0]
    lm_heads = [name for name in files.shards if name.endswith(LM_HEAD_SUFFIX)]
    # Some families tie by default and say nothing: without a tensor of its own it is tied.
    tied = bool(config.get("tie_word_embeddings")) or not lm_heads
    lm_head = embedding if tied else files.read(lm_heads[0])[0]
    shape = (config["vocab_size"], config["hidden_size"])
    for name, tensor in ((files.embedding_name(), embedding), (LM_HEAD_SUFFIX, lm_head)):
        if tuple(tensor.shape) != shape:
            raise MismatchError(
                f"target tensor {name} has shape {list(tensor.shape)}: "
                f"config.json of {files.source} needs {list(shape)}"
            )
    return TargetVocabulary(
        hidden_size=config["hidden_size"],
        vocab_size=config["vocab_size"],
        context_length=int(config.get("max_position_embeddings", 2048)),
        eos_token_ids=_token_ids(config.get("eos_token_id")),
        embed_tokens=embedding,
        lm_head=lm_head,
        embedding_digest=tensor_digest(embedding),
    )


def _token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def check_fit(head: EagleHead, target: TargetVocabulary) -> None:
    """Refuses a head that belongs to another target.

    Raises:
        MismatchError: Names the tensor that does not fit.
    """
    hidden, config = target.hidden_size, head.config
    if config.hidden_size != hidden:
        raise MismatchError(
            f"head tensor fc.weight has shape {list(head.fc.weight.shape)}: "
            f"a target of hidden_size {hidden} needs {[hidden, 2 * hidden]}",
            metadata={"tensor": "fc.weight"},
        )
    if config.vocab_size != target.vocab_size:
        raise MismatchError(
            f"head tensor {EMBEDDING} has {config.vocab_size} rows: "
            f"a target of vocab_size {target.vocab_size} needs as many",
            metadata={"tensor": EMBEDDING},
        )


def save_head(
    path: str | Path,
    head: EagleHead,
    *,
    embed_tokens: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Writes a head in the official format: config.json and model.safetensors.

    Args:
        path: Folder, made if needed; its two files are replaced.
        head: The head.
        embed_tokens: The target's embedding (V, H) to include as published heads do; None leaves
            it out, and the target's is used when loading.
        dtype: Element type of the file.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    state = dict(head.state_dict())
    if embed_tokens is not None:
        state[EMBEDDING] = embed_tokens
    stored = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    save_file(stored, folder / SINGLE_FILE, metadata={"format": "pt"})
    text = json.dumps(head_config_fields(head.config, dtype), indent=2)
    (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")


def head_config_fields(config: HeadConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the official config.json of a head."""
    fields: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "num_hidden_layers": config.num_layers,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_act": config.hidden_act,
        "bias": config.bias,
        "qkv_bias": config.qkv_bias,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        fields["head_dim"] = config.head_dim
    if config.rope_linear_factor != 1.0:
        fields["rope_scaling"] = {"type": "linear", "factor": config.rope_linear_factor}
    return fields
