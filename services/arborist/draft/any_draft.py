"""Loads a draft of either kind: what its folder holds decides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from arborist.common.model_files import ModelFiles
from arborist.core.errors import InvalidArgumentError
from arborist.draft.engine import load_draft
from arborist.draft.language_model_files import is_language_model
from arborist.draft.tree_engine import TreeDraftEngine


def load_any_draft(
    model_path: str | Path,
    target_path: str | Path,
    *,
    device: str,
    dtype: str,
    kv_capacity_tokens: int,
    revision: str | None = None,
    target_revision: str | None = None,
    name: str | None = None,
    token_ids: Sequence[int] | None = None,
) -> TreeDraftEngine:
    """Loads an EAGLE head, or a causal language model with the target's tokens.

    Args:
        model_path: Folder or hub name of the draft.
        target_path: Folder or hub name of the target.
        device: "cpu" or "cuda:N".
        dtype: float32, bfloat16 or float16.
        kv_capacity_tokens: KV positions of all sessions together.
        revision: Revision of a hub draft.
        target_revision: Revision of a hub target.
        name: Served name; the last part of model_path unless given.
        token_ids: A head drafts these of the target's ids only (FR-Spec); None = all.
    Raises:
        InvalidArgumentError: No such model, device or dtype, or ids for a language model.
        MismatchError: The draft is broken, or belongs to another target.
    """
    files = ModelFiles(model_path, revision)
    if not is_language_model(files.config, files.shards):
        return load_draft(
            model_path,
            target_path,
            device=device,
            dtype=dtype,
            kv_capacity_tokens=kv_capacity_tokens,
            revision=revision,
            target_revision=target_revision,
            name=name,
            token_ids=token_ids,
        )
    if token_ids is not None:
        raise InvalidArgumentError(
            "draft.vocabulary_file", f"{len(token_ids)} ids", "unset: the draft is a language model"
        )
    # Late: brings in transformers, which a head does without.
    from arborist.draft.language_model_engine import load_language_model

    return load_language_model(
        model_path,
        target_path,
        device=device,
        dtype=dtype,
        kv_capacity_tokens=kv_capacity_tokens,
        revision=revision,
        target_revision=target_revision,
        name=name,
    )
