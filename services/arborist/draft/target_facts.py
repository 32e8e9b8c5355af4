"""What a language-model draft must know of its target; no weights are loaded for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig

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
    try:
        config = AutoConfig.from_pretrained(
            files.source, revision=revision or "main", trust_remote_code=False
        ).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MismatchError(f"cannot read config.json of {files.source}: {reason}") from error
    try:
        digest = tensor_digest(files.read(files.embedding_name())[0])
    except MismatchError:
        digest = ""  # No table of the usual name: nothing to compare a target with.
    eos = config.eos_token_id
    ids = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
    return TargetFacts(files.source, revision, config.vocab_size, ids, digest)
