"""The EAGLE draft engine: a head over true pairs and its own states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from arborist.common.few_rows import FewRowsMatrix
from arborist.common.float_dtypes import FLOAT_DTYPES
from arborist.common.model_files import ModelFiles
from arborist.core.engine import DraftOpen, Extend, ModelInfo, SessionKey
from arborist.core.errors import InvalidArgumentError
from arborist.core.features import FeatureSpec
from arborist.core.shape import MAX_DEPTH
from arborist.core.tree import IntArray
from arborist.draft.attention import PackedAttention
from arborist.draft.checkpoint import Head, StoredHead, check_fit, check_tables, read_head
from arborist.draft.eagle3_head import Eagle3Head
from arborist.draft.feature_layers import feature_layers
from arborist.draft.frequent_vocabulary import keep_frequent
from arborist.draft.kv import KvPool
from arborist.draft.target_vocabulary import TargetVocabulary, load_target_vocabulary
from arborist.draft.tree_engine import DraftForward, DraftPlan, TreeDraftEngine


class EagleDraftEngine(TreeDraftEngine):
    """An EAGLE head with its embedding and LM head; holds true pairs."""

    def __init__(
        self,
        head: Head,
        embed_tokens: Tensor,
        lm_head: Tensor,
        info: ModelInfo,
        kv_capacity_tokens: int,
        *,
        token_ids: Tensor | None = None,
        feature_spec: FeatureSpec | None = None,
    ) -> None:
        """Allocates the KV.

        Args:
            head: On its device, in its dtype.
            embed_tokens: (V, H), same device and dtype.
            lm_head: (Vd, H), same device and dtype; Vd = V without token_ids.
            info: What is loaded.
            kv_capacity_tokens: KV positions of all sessions together; a session takes its
                max_length and SCRATCH_TOKENS.
            token_ids: The target's id of each row of lm_head, int64; None = its own number.
            feature_spec: Features of the target; None = the state after the final norm.
        """
        self._head = head.eval()
        self._head.prepare_for_inference()
        self._embed_tokens = embed_tokens
        self._project = _projection(lm_head)
        self._feature_spec = feature_spec or FeatureSpec()
        self._dtype = lm_head.dtype
        super().__init__(
            info,
            KvPool(head.config, kv_capacity_tokens, lm_head.device, lm_head.dtype),
            lm_head.shape[0],
            device=lm_head.device,
            token_ids=token_ids,
        )

    @property
    def feature_spec(self) -> FeatureSpec | None:
        """Returns the state after the final norm, or an EAGLE-3 head's layers."""
        return self._feature_spec

    @property
    def feature_width(self) -> int:
        """Returns the width of a feature row."""
        return self._head.feature_width

    @property
    def _token_shift(self) -> int:
        return 1  # Draft position p is fed token p + 1 (DESIGN §2.1).

    def open(self, session: SessionKey, request: DraftOpen) -> int:
        """Reserves KV; see the base."""
        reserved = super().open(session, request)
        self._head.rotary.reserve(request.max_length + MAX_DEPTH)
        return reserved

    def _features_of(self, work: Extend) -> Tensor:
        features = work.features
        if features is None:
            raise InvalidArgumentError("features", "none", "one row per token")
        shape = (len(work.tokens), self.feature_width)
        if tuple(features.shape) != shape:
            raise InvalidArgumentError("features", tuple(features.shape), f"of shape {shape}")
        if features.dtype not in FLOAT_DTYPES.values():
            raise InvalidArgumentError("features", features.dtype, f"one of {list(FLOAT_DTYPES)}")
        # They are finite, whoever received or computed them has seen to that; but what is finite in
        # fp32 may overflow fp16. Looked at before the copy to the device: nothing waits for one.
        converted = features.to(self._dtype)
        narrower = torch.finfo(self._dtype).max < torch.finfo(features.dtype).max
        if narrower and not bool(converted.isfinite().all()):
            raise InvalidArgumentError("features", "NaN or infinite", "finite")
        return converted.to(self._device)

    def _forward(self, plans: list[DraftPlan], inputs: IntArray) -> DraftForward:
        tokens, positions = torch.from_numpy(inputs).to(self._device)  # [R], [R]
        attention = PackedAttention(self._kv, [plan.span for plan in plans])
        states: Tensor = self._head(
            F.embedding(tokens, self._embed_tokens), self._fed(plans), positions, attention.attend
        )
        rows = [row for plan in plans for row in plan.level_rows]
        if not rows:
            return DraftForward(states.new_empty((0, self._num_draft_ids)), states)
        wanted = states
        if len(rows) < states.shape[0]:
            wanted = states.index_select(0, torch.tensor(rows).to(self._device))
        return DraftForward(self._project(self._head.readout(wanted)), states)

    def _fed(self, plans: list[DraftPlan]) -> Tensor:
        """Returns what the head is fed, (R, H): features are fused, its own states are not."""
        features = [plan.features for plan in plans if plan.features is not None]
        true = [
            rows
            for plan, rows in zip(plans, features, strict=True)
            if isinstance(plan.work, Extend)
        ]
        if not true:
            return _joined(features)
        fused = self._head.fuse(_joined(true))
        if len(true) == len(plans):
            return fused
        parts = iter(torch.split_with_sizes(fused, [len(part) for part in true]))
        return torch.cat(
            [
                next(parts) if isinstance(plan.work, Extend) else rows
                for plan, rows in zip(plans, features, strict=True)
            ]
        )


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def load_draft(
    head_path: str | Path,
    target_path: str | Path,
    *,
    device: str | torch.device,
    dtype: str | torch.dtype,
    kv_capacity_tokens: int,
    revision: str | None = None,
    target_revision: str | None = None,
    name: str | None = None,
    token_ids: Sequence[int] | None = None,
) -> EagleDraftEngine:
    """Loads a head and what it borrows from its target: embedding and LM head only.

    Args:
        head_path: Folder or hub name of the head.
        target_path: Folder or hub name of the target.
        device: "cpu" or "cuda:N".
        dtype: float32, bfloat16 or float16.
        kv_capacity_tokens: KV positions of all sessions together.
        revision: Revision of a hub head.
        target_revision: Revision of a hub target.
        name: Served name; the last part of head_path unless given.
        token_ids: Draft these of the target's ids only (FR-Spec); None = all.
    Raises:
        InvalidArgumentError: No such model, an unknown dtype, or ids that do not fit.
        MismatchError: The head is broken, of another format, or belongs to another target; names
            the tensor.
    """
    torch_dtype = _checked_dtype(dtype)
    files = ModelFiles(head_path, revision)
    stored = read_head(files, torch_dtype)
    target = load_target_vocabulary(target_path, revision=target_revision)
    check_fit(stored.head, target)
    check_tables(stored, target)
    if token_ids is not None:
        stored = keep_frequent(stored, token_ids, target.vocab_size)
    place = torch.device(device)
    lm_head = _lm_head(stored, target).to(place, torch_dtype)
    embed_tokens = _embedding(stored, target, lm_head)
    head = stored.head.to(place)
    num_tables = lm_head.numel() + (0 if embed_tokens is lm_head else embed_tokens.numel())
    info = ModelInfo(
        name=name or Path(head_path).name,
        digest=files.digest(),
        vocab_size=target.vocab_size,
        hidden_size=target.hidden_size,
        num_layers=head.config.num_layers,
        context_length=target.context_length,
        num_parameters=sum(one.numel() for one in head.parameters()) + num_tables,
        dtype=str(torch_dtype).removeprefix("torch."),
        eos_token_ids=target.eos_token_ids,
        embedding_digest=target.embedding_digest,
    )
    return EagleDraftEngine(
        head,
        embed_tokens,
        lm_head,
        info,
        kv_capacity_tokens,
        token_ids=stored.token_ids,
        feature_spec=_feature_spec(head, target),
    )


def _checked_dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = FLOAT_DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in FLOAT_DTYPES.values():
        raise InvalidArgumentError("dtype", dtype, f"one of {list(FLOAT_DTYPES)}")
    return found


def _feature_spec(head: Head, target: TargetVocabulary) -> FeatureSpec:
    if isinstance(head, Eagle3Head):
        return FeatureSpec(feature_layers(head.fusion, target.num_layers))
    return FeatureSpec()


def _projection(lm_head: Tensor) -> Callable[[Tensor], Tensor]:
    if lm_head.device.type == "cpu":
        return FewRowsMatrix(lm_head)
    return partial(F.linear, weight=lm_head)


def _lm_head(stored: StoredHead, target: TargetVocabulary) -> Tensor:
    """Returns the head's own LM head if it has one, else the target's rows of its vocabulary."""
    if stored.lm_head is not None:
        return stored.lm_head
    if stored.token_ids is not None:
        return target.lm_head[stored.token_ids]
    return target.lm_head


def _embedding(stored: StoredHead, target: TargetVocabulary, lm_head: Tensor) -> Tensor:
    """Returns the table the head embeds with: its own copy if it has one, else the target's."""
    own = stored.embed_tokens
    table = target.embed_tokens if own is None else own.to(target.embed_tokens.dtype)
    borrows_all = stored.lm_head is None and stored.token_ids is None
    tied = borrows_all and target.lm_head is target.embed_tokens
    if tied and torch.equal(table, target.embed_tokens):
        return lm_head  # Tied: one table serves both ends.
    return table.to(lm_head.device, lm_head.dtype)
