"""Heads of other formats, converted once into the form that workers read.

The one module outside of training that opens pickled files, and only as tensors
(`weights_only=True`): it never runs in a worker.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from arborist.common.model_files import ModelFiles
from arborist.core.errors import InvalidArgumentError, MismatchError
from arborist.draft.checkpoint import (
    OWN_LM_HEAD,
    StoredHead,
    check_fit,
    check_tables,
    read_head,
    write_head,
)
from arborist.draft.draft_vocabulary import MEMBERS, OFFSETS, token_ids_of
from arborist.draft.eagle3_head import Eagle3Head
from arborist.draft.feature_layers import feature_layers
from arborist.draft.head_config import FEATURE_LAYERS
from arborist.draft.head_formats import OfficialHead, describe_origin, to_official
from arborist.draft.published_files import PublishedFiles
from arborist.draft.target_vocabulary import LM_HEAD, TargetVocabulary, load_target_vocabulary

_PARTIAL_SUFFIX = ".partial"
# LM heads that differ by less are the target's, rounded to another element type.
_SAME_TABLE = 2e-2


@dataclass(frozen=True, slots=True)
class ImportedHead:
    """What an import found and wrote.

    Attributes:
        path: Folder of the converted head.
        lines: What to tell the user, one fact a line.
    """

    path: Path
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SourceHead:
    """A head as it was published.

    Attributes:
        file: The file, or the index of the files, its tensors came from.
        config: config.json.
        tensors: By name, as stored.
    """

    file: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]


def import_head(
    source: str | Path,
    destination: str | Path,
    target: str | Path,
    *,
    revision: str | None = None,
    target_revision: str | None = None,
) -> ImportedHead:
    """Converts a head of any known format and checks it against its target.

    Args:
        source: Folder or hub name of the head.
        destination: Folder to write; it must not exist, or be empty.
        target: Folder or hub name of the model the head was trained for.
        revision: Branch, tag or commit of a hub head.
        target_revision: Branch, tag or commit of a hub target.
    Returns:
        What was found and written.
    Raises:
        InvalidArgumentError: There is no such model, or the destination holds something.
        MismatchError: An unknown, missing or misshapen tensor, a number that is not finite, or
            a head of another target; names the tensor. Nothing is left at the destination.
    """
    folder = Path(destination)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidArgumentError("destination", folder, "a folder that is empty or not there")
    found = read_source(source, revision)
    vocabulary = load_target_vocabulary(target, revision=target_revision)
    official = to_official(found.tensors, found.config)
    _settle_lm_head(official, found.config, vocabulary)
    _complete_vocabulary(official, vocabulary)
    _check_finite(official.tensors)
    partial = folder.with_name(folder.name + _PARTIAL_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write_head(partial, official.tensors, official.config)
        stored = read_head(ModelFiles(partial), torch.float32)
        check_fit(stored.head, vocabulary)
        check_tables(stored, vocabulary)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except MismatchError as error:
        # The user knows the head by its own name, not by that of our working folder.
        message = error.message.replace(str(partial), str(source))
        raise MismatchError(message, metadata=error.metadata) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ImportedHead(folder, tuple(_describe(found, official, stored, vocabulary)))


def read_source(source: str | Path, revision: str | None = None) -> SourceHead:
    """Reads a head as it was published, pickled or not; safetensors are preferred.

    Args:
        source: Folder or hub name.
        revision: Branch, tag or commit of a hub name.
    Raises:
        InvalidArgumentError: There is no such model.
        MismatchError: No config.json, no weights, or files that are damaged or hold more than
            tensors.
    """
    files = PublishedFiles(source, revision)
    weights = files.weights()
    load = _load_pickled if weights.pickled else _load_safetensors
    tensors = {name: one for path in weights.paths for name, one in load(path).items()}
    return SourceHead(weights.name, files.config, tensors)


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise MismatchError(f"cannot read {path}: {error}") from None


def _load_pickled(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise MismatchError(f"cannot read {path} as tensors alone: {reason}") from None
    if not isinstance(loaded, Mapping):
        raise MismatchError(f"{path} is not a state dict")
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise MismatchError(f"{path} holds {name}, which is not a tensor")
    # Tables that share storage are written as what they are: two tensors.
    return {name: tensor.detach().clone() for name, tensor in loaded.items()}


def _settle_lm_head(
    head: OfficialHead, config: Mapping[str, Any], target: TargetVocabulary
) -> None:
    """Decides whose LM head an EAGLE-1/2 head uses; an EAGLE-3 head says so itself."""
    own = head.tensors.get(LM_HEAD)
    if own is None or head.is_eagle3:
        return
    rows = target.lm_head
    if OFFSETS in head.tensors:
        ids = token_ids_of(head.tensors[OFFSETS], None, target.vocab_size)
        rows = rows[ids]
        if len(own) == target.vocab_size:
            own = own[ids]
    borrowed = "SGLang" in describe_origin(config)
    if borrowed or (own.shape == rows.shape and _is_same(own, rows)):
        del head.tensors[LM_HEAD]
        head.notes.append(f"left out {LM_HEAD}: the target's is used")
        return
    head.tensors[LM_HEAD] = own
    head.config[OWN_LM_HEAD] = True
    head.notes.append(f"kept {LM_HEAD}: it is not the target's")


def _is_same(own: Tensor, rows: Tensor) -> bool:
    scale = float(rows.float().abs().max())
    return bool(((own.float() - rows.float()).abs() <= _SAME_TABLE * scale).all())


def _complete_vocabulary(head: OfficialHead, target: TargetVocabulary) -> None:
    """Adds `t2d`, which follows from `d2t`, and the vocabulary's size where it is not said."""
    head.config.setdefault("vocab_size", target.vocab_size)
    offsets = head.tensors.get(OFFSETS)
    if offsets is not None and MEMBERS not in head.tensors:
        ids = token_ids_of(offsets, None, int(head.config["vocab_size"]))
        members = torch.zeros(int(head.config["vocab_size"]), dtype=torch.bool)
        members[ids] = True
        head.tensors[MEMBERS] = members


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise MismatchError(
                f"head tensor {name} holds numbers that are not finite", metadata={"tensor": name}
            )


def _describe(
    found: SourceHead, official: OfficialHead, stored: StoredHead, target: TargetVocabulary
) -> list[str]:
    origin = describe_origin(found.config)
    head, config = stored.head, stored.head.config
    size = sum(one.numel() * one.element_size() for one in official.tensors.values())
    dtypes = sorted({str(one.dtype).removeprefix("torch.") for one in official.tensors.values()})
    lines = [
        f"format: {official.found.value}" + (f" ({origin})" if origin else ""),
        f"read: {len(found.tensors)} tensors of {found.file}, {size / 1e6:.1f} MB, "
        f"{', '.join(dtypes)}",
        f"shape: hidden {config.hidden_size}, {config.num_attention_heads} heads of "
        f"{config.head_dim}, {config.num_key_value_heads} KV heads, MLP {config.intermediate_size}",
        "embedding: " + ("its own" if stored.embed_tokens is not None else "the target's"),
        "LM head: " + ("its own" if stored.lm_head is not None else "the target's"),
    ]
    if stored.token_ids is not None:
        lines.append(f"draft vocabulary: {len(stored.token_ids)} of {target.vocab_size} tokens")
    if isinstance(head, Eagle3Head):
        layers = ", ".join(map(str, feature_layers(head.fusion, target.num_layers)))
        told = "its config" if FEATURE_LAYERS in official.config else "the official choice"
        lines.append(f"features: inputs of layers {layers} of {target.num_layers} ({told})")
    else:
        lines.append("features: the target's state after its final norm")
    return [*lines, *(f"note: {note}" for note in official.notes)]
