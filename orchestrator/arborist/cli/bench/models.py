"""Models of the contestants that run in process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from arborist.core.engine import DraftEngine, TargetEngine
from arborist.core.errors import UnavailableError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from arborist.cli.bench.contest import BenchSettings


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the modes must know of the target.

    Attributes:
        eos_token_ids: Tokens that end an output.
        context_length: Longest sequence, in tokens.
    """

    eos_token_ids: tuple[int, ...]
    context_length: int


def model_facts(target: str) -> ModelFacts:
    """Reads them from the folder's configuration; loads no weights."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(target)
    except (OSError, ValueError) as error:
        raise UnavailableError(f"no model can be read from {target}") from error
    try:
        eos = GenerationConfig.from_pretrained(target).eos_token_id
    except OSError:
        eos = config.eos_token_id
    ids = () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)
    return ModelFacts(ids, int(config.max_position_embeddings))


def load_hf(settings: BenchSettings) -> PreTrainedModel:
    """Loads the target as transformers does by itself, with sdpa attention."""
    import torch
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        settings.target,
        dtype=getattr(torch, settings.dtype),
        attn_implementation="sdpa",
        use_safetensors=True,
    )
    return model.to(settings.device).eval()


def load_local_target(settings: BenchSettings, dtype: str) -> TargetEngine:
    """Loads the target into this process.

    Args:
        settings: Which one, and where.
        dtype: float32, bfloat16 or float16.
    """
    from arborist.target.engine import load_target

    return load_target(
        settings.target,
        device=settings.device,
        dtype=dtype,
        kv_capacity_tokens=settings.kv_capacity_tokens,
    )


def load_local_draft(settings: BenchSettings) -> DraftEngine:
    """Loads the head into this process."""
    from arborist.draft.engine import load_draft

    return load_draft(
        settings.draft,
        settings.target,
        device=settings.device,
        dtype=settings.dtype,
        kv_capacity_tokens=settings.kv_capacity_tokens,
    )
