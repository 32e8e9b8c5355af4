"""EAGLE heads on disk, as this project keeps them: the official tensor names, in safetensors.

Everything else there is comes in through `arborist import-head`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor

from arborist.common.model_files import CONFIG, SINGLE_FILE, ModelFiles
from arborist.core.errors import MismatchError
from arborist.draft.draft_vocabulary import MEMBERS, OFFSETS, offsets_of, token_ids_of
from arborist.draft.eagle3_head import Eagle3Head
from arborist.draft.feature_layers import feature_layers
from arborist.draft.head import EagleHead
from arborist.draft.head_config import (
    OUTPUT_LAYERS,
    eagle3_config_fields,
    head_config_fields,
    parse_fusion_config,
    parse_head_config,
)
from arborist.draft.head_formats import FIRST_SHAPES, HeadFormat, detect_format, reads_two_widths
from arborist.draft.target_vocabulary import LM_HEAD, TargetVocabulary

EMBEDDING = "embed_tokens.weight"
FUSION = "fc.weight"
OWN_LM_HEAD = "own_lm_head"
"""Says in config.json that an EAGLE-1/2 head brings an LM head of its own."""

_COMPARED_ROWS = 4096
# Relative distance up to which embeddings are one: rounding and fine-tuning stay far below, tables
# of two models are 1.4 apart.
_SAME_EMBEDDING = 0.5

Head: TypeAlias = EagleHead | Eagle3Head


@dataclass(frozen=True, slots=True)
class StoredHead:
    """A head as it was read.

    Attributes:
        head: On the CPU, in evaluation mode.
        embed_tokens: Its own embedding (V, H); None = the target's.
        lm_head: Its own LM head (Vd, H); None = the target's rows.
        token_ids: The target's id of each of its Vd draft ids, int64; None = all of them.
    """

    head: Head
    embed_tokens: Tensor | None
    lm_head: Tensor | None
    token_ids: Tensor | None


def load_head(
    path: str | Path, *, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[EagleHead, Tensor | None]:
    """Loads an EAGLE-1/2 head, whatever its target.

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
    stored = read_head(ModelFiles(path, revision), dtype)
    if not isinstance(stored.head, EagleHead):
        raise MismatchError(f"{path} is an EAGLE-3 head: must be an EAGLE-1/2 head")
    return stored.head, stored.embed_tokens


def read_head(files: ModelFiles, dtype: torch.dtype) -> StoredHead:
    """Loads a head from opened files.

    Args:
        files: Of the head.
        dtype: Element type of the returned weights; tables stay as they are stored.
    Raises:
        MismatchError: Another format, an unknown, missing or misshapen tensor, or a config.json
            that does not describe a head; the message names it.
    """
    found, expected = _check_layout(files)
    state = {name: files.read(name)[0] for name in expected}
    for name, tensor in state.items():
        _check_shape(name, tensor, tuple(expected[name].shape), "config.json")
    # The rotary table is no part of the file: build it for real, then fill the weights in.
    with torch.device("cpu"):
        head = _new_head(files, found)
    head.load_state_dict(state)
    return _with_tables(head.to(dtype).eval(), files)


def is_servable(files: ModelFiles) -> bool:
    """Returns whether a head is in the form that workers read, told by names and config alone.

    Args:
        files: Of the head.
    """
    if OUTPUT_LAYERS in files.config:
        return False  # Other formats' word for the layers, which only the import understands.
    try:
        _check_layout(files)
    except MismatchError:
        return False
    return True


def _check_layout(files: ModelFiles) -> tuple[HeadFormat, dict[str, Tensor]]:
    """Returns the format and the tensors, without data, that a head must have besides tables."""
    names = set(files.shards)
    found = detect_format(names, _reads_two_widths(files))
    if found not in (HeadFormat.EAGLE_2, HeadFormat.EAGLE_3):
        raise MismatchError(
            f"{files.source} is a head in the {found.value} format: only the official EAGLE-1/2 "
            "and EAGLE-3 formats are served, convert it with `arborist import-head`"
        )
    with torch.device("meta"):
        expected = _new_head(files, found).state_dict()
    _check_names(names, set(expected), _table_names(files, found), files.source)
    return found, expected


def _reads_two_widths(files: ModelFiles) -> bool:
    shapes = {name: files.read(name)[0].shape for name in FIRST_SHAPES if name in files.shards}
    return reads_two_widths(shapes)


def _new_head(files: ModelFiles, found: HeadFormat) -> Head:
    names = set(files.shards)
    if found is HeadFormat.EAGLE_2:
        return EagleHead(parse_head_config(files.config, names, files.source))
    config = parse_head_config(files.config, names, files.source, "midlayer")
    fusion = files.read(FUSION)[0]
    width = fusion.shape[-1] if fusion.dim() == 2 else 0
    return Eagle3Head(config, parse_fusion_config(files.config, names, width, files.source))


def _table_names(files: ModelFiles, found: HeadFormat) -> set[str]:
    """Returns the tensors a head of this format may have besides its layers."""
    may_own = found is HeadFormat.EAGLE_3 or bool(files.config.get(OWN_LM_HEAD))
    return {EMBEDDING, OFFSETS, MEMBERS, *((LM_HEAD,) if may_own else ())}


def _with_tables(head: Head, files: ModelFiles) -> StoredHead:
    config = head.config
    embedding, lm_head, offsets, members = (
        files.read(name)[0] if name in files.shards else None
        for name in (EMBEDDING, LM_HEAD, OFFSETS, MEMBERS)
    )
    if embedding is not None:
        _check_shape(EMBEDDING, embedding, (config.vocab_size, config.hidden_size), "config.json")
    token_ids = None
    num_draft_ids, authority = config.vocab_size, "config.json"
    if offsets is not None:
        token_ids = token_ids_of(offsets, members, config.vocab_size)
        num_draft_ids, authority = len(token_ids), OFFSETS
    elif members is not None:
        raise MismatchError(
            f"head tensor {OFFSETS} is missing from {files.source}", metadata={"tensor": OFFSETS}
        )
    _check_draft_vocab_size(files, num_draft_ids)
    if lm_head is not None:
        _check_shape(LM_HEAD, lm_head, (num_draft_ids, config.hidden_size), authority)
    return StoredHead(head, embedding, lm_head, token_ids)


def _check_draft_vocab_size(files: ModelFiles, num_draft_ids: int) -> None:
    stated = files.config.get("draft_vocab_size")
    if stated is None or stated == num_draft_ids:
        return
    if OFFSETS in files.shards:
        raise MismatchError(
            f"head tensor {OFFSETS} has {num_draft_ids} rows: draft_vocab_size in config.json is "
            f"{stated}",
            metadata={"tensor": OFFSETS},
        )
    raise MismatchError(
        f"head tensor {OFFSETS} is missing from {files.source}: draft_vocab_size in config.json is "
        f"{stated}",
        metadata={"tensor": OFFSETS},
    )


def _check_names(names: set[str], expected: set[str], tables: set[str], source: str) -> None:
    missing = sorted(expected - names)
    if missing:
        raise MismatchError(
            f"head tensor {missing[0]} is missing from {source}{_others(missing)}",
            metadata={"tensor": missing[0]},
        )
    unknown = sorted(names - expected - tables)
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


def check_fit(head: Head, target: TargetVocabulary) -> None:
    """Refuses a head that belongs to another target.

    Args:
        head: The head.
        target: What it would borrow from.
    Raises:
        MismatchError: Names the tensor that does not fit.
    """
    hidden, config = target.hidden_size, head.config
    is_eagle3 = isinstance(head, Eagle3Head)
    reads = head.fusion.target_hidden_size if isinstance(head, Eagle3Head) else config.hidden_size
    if reads != hidden:
        needed = head.fusion.num_layers if isinstance(head, Eagle3Head) else 2
        rows = config.hidden_size if is_eagle3 else hidden
        raise MismatchError(
            f"head tensor {FUSION} has shape {list(head.fc.weight.shape)}: "
            f"a target of hidden_size {hidden} needs {[rows, needed * hidden]}",
            metadata={"tensor": FUSION},
        )
    if config.vocab_size != target.vocab_size:
        name = MEMBERS if is_eagle3 else EMBEDDING
        raise MismatchError(
            f"head tensor {name} has {config.vocab_size} rows: "
            f"a target of vocab_size {target.vocab_size} needs as many",
            metadata={"tensor": name},
        )
    if isinstance(head, Eagle3Head):
        feature_layers(head.fusion, target.num_layers)


def check_tables(stored: StoredHead, target: TargetVocabulary) -> None:
    """Refuses a head whose tables and the target's do not go together.

    A head may only borrow a table of its own width; and the embedding that an EAGLE-1/2 head
    carries is a frozen copy of its target's, so another one tells of another target.

    Args:
        stored: The head and its tables.
        target: What it would borrow from.
    Raises:
        MismatchError: Names the tensor.
    """
    hidden = stored.head.config.hidden_size
    if hidden == target.hidden_size:
        own = stored.embed_tokens
        if own is not None and isinstance(stored.head, EagleHead):
            _check_same_embedding(own, target.embed_tokens)
        return
    for name, table in ((EMBEDDING, stored.embed_tokens), (LM_HEAD, stored.lm_head)):
        if table is None:
            raise MismatchError(
                f"head tensor {name} is missing: the head is {hidden} wide, the target's table "
                f"{target.hidden_size}",
                metadata={"tensor": name},
            )


def _check_same_embedding(own: Tensor, targets: Tensor) -> None:
    # Some thousand rows tell as well as all of a large table.
    step = 1 + len(own) // _COMPARED_ROWS
    ours, theirs = own[::step].float(), targets[::step].float()
    if float((ours - theirs).norm()) > _SAME_EMBEDDING * float(theirs.norm()):
        raise MismatchError(
            f"head tensor {EMBEDDING} is another model's embedding, not this target's",
            metadata={"tensor": EMBEDDING},
        )


def save_head(
    path: str | Path,
    head: EagleHead,
    *,
    embed_tokens: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Writes an EAGLE-1/2 head in the official format: config.json and model.safetensors.

    Args:
        path: Folder, made if needed; its two files are replaced.
        head: The head.
        embed_tokens: The target's embedding (V, H) to include as published heads do; None leaves
            it out, and the target's is used when loading.
        dtype: Element type of the file.
    """
    state = dict(head.state_dict())
    if embed_tokens is not None:
        state[EMBEDDING] = embed_tokens
    stored = {name: tensor.detach().to("cpu", dtype) for name, tensor in state.items()}
    write_head(path, stored, head_config_fields(head.config, dtype))


def save_eagle3_head(
    path: str | Path,
    head: Eagle3Head,
    lm_head: Tensor,
    token_ids: Tensor,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Writes an EAGLE-3 head in the official format: config.json and model.safetensors.

    Args:
        path: Folder, made if needed; its two files are replaced.
        head: The head.
        lm_head: Its LM head, (Vd, H).
        token_ids: The target's id of each of its Vd draft ids, int64, distinct.
        dtype: Element type of the file.
    """
    members = torch.zeros(head.config.vocab_size, dtype=torch.bool)
    members[token_ids] = True
    state = {**head.state_dict(), LM_HEAD: lm_head}
    stored = {name: tensor.detach().to("cpu", dtype) for name, tensor in state.items()}
    stored |= {OFFSETS: offsets_of(token_ids), MEMBERS: members}
    write_head(path, stored, eagle3_config_fields(head.config, head.fusion, len(token_ids), dtype))


def write_head(path: str | Path, tensors: dict[str, Tensor], config: dict[str, object]) -> None:
    """Writes tensors and config.json of a head.

    Args:
        path: Folder, made if needed; its two files are replaced.
        tensors: By official name, on the CPU.
        config: config.json.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / SINGLE_FILE, metadata={"format": "pt"})
    (folder / CONFIG).write_text(f"{json.dumps(config, indent=2)}\n", encoding="utf-8")
