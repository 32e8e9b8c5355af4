"""What a language-model draft must know of its target; no weights are loaded for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from arborist.common.model_files import ModelFiles, tensor_digest
from arborist.core.errors import MismatchError


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """What must agree between a target and its draft.

    Attributes:
        source: Folder or hub name.
        revision: Branch, tag or commit of a hub name.
        vocab_size: Number of token ids, padding included.
        eos_token_ids: Ids that end an output.
        embedding_digest: SHA-256 of its embedding as stored: says which target it is; empty when
            no tensor is named like one.
    """

    source: str
    revision: str | None
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    embedding_digest: str


def read_target_facts(source: str | Path, revision: str | None = None) -> TargetFacts:
    """Reads a target's configuration.

    Args:
        source: Folder or hub name.
        revision: Branch, tag or commit of a hub name.
    Raises:
        InvalidArgumentError: There is no such model.
        MismatchError: Its configuration cannot be read.
    """
    files = ModelFiles(source, revision)
    config = read_text_config(files.source, revision)
    try:
        digest = tensor_digest(files.read(files.embedding_name())[0])
    except MismatchError:
        digest = ""  # No table of the usual name: nothing to compare a target with.
    eos = config.eos_token_id
    ids = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
    return TargetFacts(files.source, revision, config.vocab_size, ids, digest)


def read_text_config(source: str, revision: str | None) -> PretrainedConfig:
    """Reads the configuration of a model, or of the language model in it; it has a vocab_size.

    Args:
        source: Folder or hub name.
        revision: Branch, tag or commit of a hub name.
    Raises:
        MismatchError: It cannot be read, in one line.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            source, revision=revision or "main", trust_remote_code=False
        ).get_text_config()
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise MismatchError(f"cannot read config.json of {source}: {first_line(error)}") from error
    if not isinstance(getattr(config, "vocab_size", None), int):
        raise MismatchError(f"config.json of {source} has no vocab_size")
    return config


def first_line(error: Exception) -> str:
    """Returns the first line of an exception's text, or its class when it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
