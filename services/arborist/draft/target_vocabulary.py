"""What a draft borrows from its target: the embedding, the LM head, and what must agree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from arborist.common.model_files import ModelFiles, tensor_digest
from arborist.core.errors import MismatchError

LM_HEAD = "lm_head.weight"


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
        num_layers: Decoder layers; 0 when config.json does not say.
    """

    hidden_size: int
    vocab_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    embed_tokens: Tensor
    lm_head: Tensor
    embedding_digest: str
    num_layers: int = 0


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
    if not isinstance(config.get("hidden_size"), int):
        raise MismatchError(f"config.json of {files.source} has no hidden_size")
    embedding = files.read(files.embedding_name())[0]
    # A published text_config may leave out what its family's code has as a default (Gemma 3 does).
    vocab_size = int(config.get("vocab_size") or len(embedding))
    lm_heads = [name for name in files.shards if name.endswith(LM_HEAD)]
    # Some families tie by default and say nothing: without a tensor of its own it is tied.
    tied = bool(config.get("tie_word_embeddings")) or not lm_heads
    lm_head = embedding if tied else files.read(lm_heads[0])[0]
    shape = (vocab_size, config["hidden_size"])
    for name, tensor in ((files.embedding_name(), embedding), (LM_HEAD, lm_head)):
        if tuple(tensor.shape) != shape:
            raise MismatchError(
                f"target tensor {name} has shape {list(tensor.shape)}: "
                f"config.json of {files.source} needs {list(shape)}"
            )
    return TargetVocabulary(
        hidden_size=config["hidden_size"],
        vocab_size=vocab_size,
        context_length=int(config.get("max_position_embeddings", 2048)),
        eos_token_ids=_token_ids(config.get("eos_token_id")),
        embed_tokens=embedding,
        lm_head=lm_head,
        embedding_digest=tensor_digest(embedding),
        num_layers=int(config.get("num_hidden_layers") or 0),
    )


def _token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)
