"""What a worker says about itself."""

from __future__ import annotations

from dataclasses import dataclass

from arborist.core.cost_table import RowCost
from arborist.core.engine import ModelInfo
from arborist.core.features import FeatureSpec


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Identity, model and load of a worker; see common.proto for the fields."""

    worker_id: str
    version: str
    device: str
    model: ModelInfo
    kv_capacity_tokens: int
    kv_reserved_tokens: int
    num_sessions: int
    num_queued_rows: int
    draining: bool
    row_costs: tuple[RowCost, ...] = ()
    session_ms: float = 0.0
    keeps_features: bool = False


@dataclass(frozen=True, slots=True)
class DraftWorkerInfo:
    """A draft worker and what it wants from the target.

    Attributes:
        info: The worker.
        feature_spec: Features wanted; None for a language-model draft.
        feature_width: Width of one feature row; 0 for a language-model draft.
    """

    info: WorkerInfo
    feature_spec: FeatureSpec | None
    feature_width: int
