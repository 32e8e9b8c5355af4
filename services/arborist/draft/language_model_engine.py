"""A draft that is a language model of its own, as a chain or as a tree."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from arborist.common.causal_model import CausalModel, load_model
from arborist.common.kv_layout import KvLayout
from arborist.common.packed_attention import PackedBatch
from arborist.core.engine import Extend, ModelInfo
from arborist.core.errors import InvalidArgumentError, MismatchError
from arborist.core.features import FeatureSpec
from arborist.core.tree import IntArray
from arborist.draft.kv import KvPool
from arborist.draft.language_model_segment import DraftSegment
from arborist.draft.shared_tokens import check_shared_tokens
from arborist.draft.target_facts import read_target_facts
from arborist.draft.tree_engine import DraftForward, DraftPlan, TreeDraftEngine


@dataclass(frozen=True, slots=True)
class _UniformKv:
    """Shape of a position's KV, the same in every layer."""

    num_layers: int
    num_key_value_heads: int
    head_dim: int


class LanguageModelDraftEngine(TreeDraftEngine):
    """A causal language model with the target's tokens; holds committed tokens, root included.

    It is fed tokens and nothing else: no features, no shift of positions. A session longer than its
    context is drafted for as long as it fits.
    """

    def __init__(self, model: CausalModel, info: ModelInfo, kv_capacity_tokens: int) -> None:
        """Allocates the KV.

        Args:
            model: Loaded and checked.
            info: What is loaded; vocab_size is the target's, no id beyond it is drafted.
            kv_capacity_tokens: KV positions of all sessions together.
        Raises:
            MismatchError: Its layers keep keys and values of different shapes.
        """
        self._model = model
        num_known_ids = model.info.vocab_size
        super().__init__(
            info,
            KvPool(
                _uniform(model.kv_layout, info.name), kv_capacity_tokens, model.device, model.dtype
            ),
            min(num_known_ids, info.vocab_size),
            device=model.device,
            num_known_ids=min(num_known_ids, info.vocab_size),
        )

    @property
    def feature_spec(self) -> FeatureSpec | None:
        """Returns None: it reads no features."""
        return None

    @property
    def feature_width(self) -> int:
        """Returns 0."""
        return 0

    @property
    def _token_shift(self) -> int:
        return 0

    def _longest(self, max_length: int) -> int:
        return min(max_length, self.info.context_length)

    def _features_of(self, work: Extend) -> Tensor | None:
        if work.features is not None:
            raise InvalidArgumentError(
                "features", tuple(work.features.shape), "none: the draft is a language model"
            )
        return None

    def _forward(self, plans: list[DraftPlan], inputs: IntArray) -> DraftForward:
        tokens, positions = inputs  # [R], [R]
        segments = [DraftSegment(self._kv, plan.span, positions[plan.span.rows]) for plan in plans]
        rows = [row for plan in plans for row in plan.level_rows]
        logits = self._model.forward(
            PackedBatch(segments), tokens.tolist(), positions.tolist(), rows
        )  # [level rows, its vocab]
        return DraftForward(logits[:, : self._num_draft_ids])


def load_language_model(
    model_path: str | Path,
    target_path: str | Path,
    *,
    device: str,
    dtype: str,
    kv_capacity_tokens: int,
    revision: str | None = None,
    target_revision: str | None = None,
    name: str | None = None,
) -> LanguageModelDraftEngine:
    """Loads a causal language model as a draft.

    Args:
        model_path: Folder or hub name of the draft.
        target_path: Folder or hub name of the target, of which no weights are loaded.
        device: "cpu" or "cuda:N".
        dtype: float32, bfloat16 or float16.
        kv_capacity_tokens: KV positions of all sessions together.
        revision: Revision of a hub draft.
        target_revision: Revision of a hub target.
        name: Served name; the last part of model_path unless given.
    Raises:
        InvalidArgumentError: No such model, device or dtype.
        MismatchError: It cannot be run, or its tokens are not the target's.
    """
    target = read_target_facts(target_path, target_revision)
    check_shared_tokens(str(model_path), revision, target)
    model = load_model(model_path, device=device, dtype=dtype, revision=revision, name=name)
    info = replace(
        model.info,
        vocab_size=target.vocab_size,
        eos_token_ids=target.eos_token_ids,
        embedding_digest=target.embedding_digest,
    )
    return LanguageModelDraftEngine(model, info, kv_capacity_tokens)


def _uniform(layout: KvLayout, name: str) -> _UniformKv:
    shapes = set(layout.planes)
    if len(shapes) != 1:
        raise MismatchError(
            f"draft {name} keeps keys and values of {len(shapes)} shapes: must be one"
        )
    heads, width = shapes.pop()
    return _UniformKv(len(layout.planes) // 2, heads, width)
