"""Whether a head fits a target, by tensor names, shapes and tables."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from arborist.common.model_files import ModelFiles
from arborist.core.engine import DraftEngine, TargetEngine
from arborist.draft.checkpoint import EMBEDDING

_COMPARED_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Fit:
    """What a head and its target say of each other.

    Attributes:
        num_tensors: Of the head.
        head_digest: SHA-256 of the head's files.
        target_digest: SHA-256 of the target's files.
        embedding_digest: SHA-256 of the target's embedding table, which both read alike.
        embedding_distance: Relative distance of the head's own copy of that table; None = it
            brings none.
        features: What the head is fed, in words.
    """

    num_tensors: int
    head_digest: str
    target_digest: str
    embedding_digest: str
    embedding_distance: float | None
    features: str


def examine_fit(
    files: ModelFiles, table: Tensor | None, target: TargetEngine, draft: DraftEngine
) -> Fit:
    """Describes a head that was loaded beside its target, which refuses what does not fit.

    Args:
        files: Of the head.
        table: The target's embedding (V, H); None = unknown.
        target: Engine of the target.
        draft: Engine of the head.
    """
    spec = draft.feature_spec
    layers = None if spec is None else spec.layer_ids
    return Fit(
        num_tensors=len(files.shards),
        head_digest=draft.info.digest,
        target_digest=target.info.digest,
        embedding_digest=target.info.embedding_digest,
        embedding_distance=_distance(files, table),
        features=describe_layers(layers, target.info.num_layers),
    )


def describe_layers(layers: tuple[int, ...] | None, num_layers: int) -> str:
    """Returns in words what a head is fed; None = the state after the final norm."""
    if layers is None:
        return "the state after the final norm"
    several = "s" if len(layers) > 1 else ""
    return f"the input{several} of layer{several} {', '.join(map(str, layers))} of {num_layers}"


def _distance(files: ModelFiles, table: Tensor | None) -> float | None:
    if table is None or EMBEDDING not in files.shards:
        return None
    own = files.read(EMBEDDING)[0]
    if own.shape != table.shape:
        return None
    # Some thousand rows tell as well as all of a large table.
    step = 1 + len(own) // _COMPARED_ROWS
    theirs = table[::step].float()
    return float((own[::step].float() - theirs).norm() / theirs.norm())
