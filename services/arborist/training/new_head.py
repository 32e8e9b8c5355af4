"""The head a run begins with, and the files it ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch

from arborist.common.model_files import ModelFiles
from arborist.core.errors import InvalidArgumentError, MismatchError
from arborist.draft.checkpoint import (
    StoredHead,
    check_fit,
    check_tables,
    read_head,
    save_eagle3_head,
    save_head,
)
from arborist.draft.eagle3_head import Eagle3Head, FusionConfig
from arborist.draft.feature_layers import default_feature_layers, feature_layers
from arborist.draft.head import EagleHead
from arborist.training.head_shape import HeadShape, head_config_of
from arborist.training.records import EncodedRecord
from arborist.training.target_states import TargetStates
from arborist.training.token_frequencies import frequent_tokens
from arborist.training.trained_head import TrainedHead

ALGORITHMS = ("eagle2", "eagle3")
Layers: TypeAlias = tuple[int, ...] | None
"""Layers of the target whose inputs are the features; None = the state after the final norm."""


@dataclass(frozen=True)
class HeadPlan:
    """Which head is wanted; None = the official choice, or the target's own."""

    algorithm: str = "eagle2"
    init: Path | None = None
    shape: HeadShape = field(default_factory=HeadShape)
    feature_layers: tuple[int, ...] | None = None
    draft_vocab_size: int | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise InvalidArgumentError("algorithm", self.algorithm, "eagle2 or eagle3")
        given: dict[str, object] = {
            "feature-layers": self.feature_layers,
            "draft-vocab-size": self.draft_vocab_size,
        }
        if self.algorithm == "eagle2":
            _refuse(given, "left out without --algorithm eagle3")
        if self.init is not None:
            _refuse(given | asdict(self.shape), "left out with --init, which says it")

    def recipe(self) -> dict[str, object]:
        """What a resumed run must not change, in JSON's types."""
        layers = None if self.feature_layers is None else list(self.feature_layers)
        recipe = asdict(self.shape)
        recipe |= {"algorithm": self.algorithm, "draft-vocab-size": self.draft_vocab_size}
        return recipe | {"feature-layers": layers}


def new_head(
    plan: HeadPlan,
    target: TargetStates,
    examples: Sequence[EncodedRecord],
    report: Callable[[str], None],
) -> tuple[TrainedHead, Layers]:
    """Make the head to train.

    Args:
        plan: what is wanted.
        target: whose head it is.
        examples: to learn from; they decide the draft vocabulary.
        report: takes a line about what was decided.
    Returns:
        the head on the CPU in fp32, and its features.
    Raises:
        InvalidArgumentError: layers, a vocabulary or a shape that the target does not allow.
        MismatchError: a head to begin with that does not fit.
    """
    if plan.init is not None:
        return _read(plan, plan.init, target)
    config = head_config_of(target.model.config, plan.shape)
    if plan.algorithm == "eagle2":
        return TrainedHead(EagleHead(config)), None
    layers = _feature_layers(plan.feature_layers, target.model.info.num_layers)
    info = target.model.info
    size = info.vocab_size if plan.draft_vocab_size is None else plan.draft_vocab_size
    chosen = frequent_tokens(examples, size, info.vocab_size, info.eos_token_ids)
    fusion = FusionConfig(config.hidden_size, len(layers), layers)
    rows = target.vocabulary.lm_head[chosen.token_ids]  # [Vd, H]
    report(
        f"EAGLE-3 head: inputs of layers {', '.join(map(str, layers))} of {info.num_layers}; draft "
        f"vocabulary {size} of {info.vocab_size} tokens, {chosen.coverage:.1%} of the labels"
    )
    return TrainedHead(Eagle3Head(config, fusion), rows, chosen.token_ids), layers


def export_head(folder: Path, model: TrainedHead, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the head in the official format, as draft workers read it."""
    stored = model.stored()
    head, lm_head, token_ids = stored.head, stored.lm_head, stored.token_ids
    if isinstance(head, EagleHead):
        save_head(folder, head, dtype=dtype)
    elif lm_head is not None and token_ids is not None:
        save_eagle3_head(folder, head, lm_head, token_ids, dtype=dtype)


def _read(plan: HeadPlan, path: Path, target: TargetStates) -> tuple[TrainedHead, Layers]:
    stored = read_head(ModelFiles(path), torch.float32)
    head = stored.head
    kind = "eagle3" if isinstance(head, Eagle3Head) else "eagle2"
    if kind != plan.algorithm:
        raise InvalidArgumentError("algorithm", plan.algorithm, f"{kind}, which {path} is")
    check_fit(head, target.vocabulary)
    check_tables(stored, target.vocabulary)
    if head.config.hidden_size != target.vocabulary.hidden_size or head.config.num_layers != 1:
        raise MismatchError(
            f"{path}: only heads of one layer and of the target's width are trained on"
        )
    head.train().requires_grad_(True)
    if isinstance(head, EagleHead):
        if stored.lm_head is not None or stored.token_ids is not None:
            raise MismatchError(f"{path}: an EAGLE-1/2 head with an LM head of its own")
        return TrainedHead(head), None
    return _with_tables(head, stored, path, target), feature_layers(
        head.fusion, target.vocabulary.num_layers
    )


def _with_tables(
    head: Eagle3Head, stored: StoredHead, path: Path, target: TargetStates
) -> TrainedHead:
    own = stored.embed_tokens
    if own is not None and not torch.equal(own.float(), target.vocabulary.embed_tokens.float()):
        raise MismatchError(f"{path}: an embedding of its own, which is not trained")
    token_ids = list(range(head.config.vocab_size))
    if stored.token_ids is not None:
        token_ids = stored.token_ids.tolist()
    rows = target.vocabulary.lm_head[token_ids] if stored.lm_head is None else stored.lm_head
    return TrainedHead(head, rows, token_ids)


def _feature_layers(asked: tuple[int, ...] | None, num_layers: int) -> tuple[int, ...]:
    if asked is None:
        return default_feature_layers(num_layers)
    for layer in asked:
        if not 0 <= layer < num_layers:
            raise InvalidArgumentError(
                "feature-layers", layer, f"in [0, {num_layers}), the target's layers"
            )
    if not asked or list(asked) != sorted(set(asked)):
        raise InvalidArgumentError("feature-layers", list(asked), "ascending, without repeats")
    return asked


def _refuse(given: Mapping[str, object], limit: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise InvalidArgumentError(name, value, limit)
