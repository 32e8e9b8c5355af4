"""A target and a head in training as the engines that workers run."""

from __future__ import annotations

from arborist.core.engine import ModelInfo
from arborist.core.features import FeatureSpec
from arborist.draft.eagle3_head import Eagle3Head
from arborist.draft.engine import EagleDraftEngine
from arborist.draft.feature_layers import feature_layers
from arborist.draft.tree_engine import SCRATCH_TOKENS
from arborist.target.engine import HfTargetEngine
from arborist.target.kv import KvPool
from arborist.training.target_states import TargetStates
from arborist.training.trained_head import TrainedHead


def target_engine(target: TargetStates, kv_capacity_tokens: int) -> HfTargetEngine:
    """The loaded target as it is served; the weights are shared.

    Args:
        target: loaded.
        kv_capacity_tokens: KV positions, one session's.
    """
    model = target.model
    pool = KvPool(model.kv_layout, kv_capacity_tokens, model.device, model.dtype)
    return HfTargetEngine(model, pool)


def draft_engine(model: TrainedHead, target: TargetStates, max_length: int) -> EagleDraftEngine:
    """A copy of the head as it is, as a draft worker would serve it in fp32.

    Args:
        model: in training.
        target: whose tables it borrows.
        max_length: longest session, in tokens.
    """
    stored, vocabulary = model.stored(), target.vocabulary
    device = target.model.device
    embedding = target.embedding
    lm_head = stored.lm_head
    if lm_head is None:
        tied = vocabulary.lm_head is vocabulary.embed_tokens
        lm_head = embedding if tied else vocabulary.lm_head
    head = stored.head.to(device)
    spec = None
    if isinstance(head, Eagle3Head):
        spec = FeatureSpec(feature_layers(head.fusion, vocabulary.num_layers))
    return EagleDraftEngine(
        head,
        embedding,
        lm_head.to(embedding),
        _info(model, target),
        max_length + SCRATCH_TOKENS,
        token_ids=stored.token_ids,
        feature_spec=spec,
    )


def _info(model: TrainedHead, target: TargetStates) -> ModelInfo:
    vocabulary = target.vocabulary
    return ModelInfo(
        name="head in training",
        digest="",
        vocab_size=vocabulary.vocab_size,
        hidden_size=vocabulary.hidden_size,
        num_layers=model.head.config.num_layers,
        context_length=vocabulary.context_length,
        num_parameters=sum(one.numel() for one in model.parameters()),
        dtype="float32",
        eos_token_ids=vocabulary.eos_token_ids,
        embedding_digest=vocabulary.embedding_digest,
    )
