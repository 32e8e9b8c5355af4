"""What the controller's metrics show of its workers."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from arborist.common.serving_metrics import ServingMetrics
from arborist.orchestrator.worker_watch import WorkerWatch


@dataclass
class Workers:
    """A pool as it looks at one moment."""

    num_late: int = 0
    num_misfits: int = 0
    present_targets: list[Any] = field(default_factory=list)
    drafts: list[Any] = field(default_factory=list)


def link(info: Any) -> Any:
    """A worker that said this of itself; None = nothing yet."""
    return SimpleNamespace(connection=SimpleNamespace(info=info))


def kv(reserved: int, capacity: int) -> Any:
    """The load of a worker."""
    return SimpleNamespace(kv_reserved_tokens=reserved, kv_capacity_tokens=capacity)


def watching(workers: Workers) -> tuple[WorkerWatch, CollectorRegistry]:
    """A watch and where its series are."""
    registry = CollectorRegistry()
    return WorkerWatch(workers, ServingMetrics(registry)), registry


def test_only_what_is_new_is_counted() -> None:
    """Looking again counts nothing twice."""
    workers = Workers()
    watch, registry = watching(workers)
    for num_late, num_misfits in ((2, 0), (2, 1), (5, 1)):
        workers.num_late, workers.num_misfits = num_late, num_misfits
        watch.look()

    assert registry.get_sample_value("arborist_late_results_total") == 5
    assert registry.get_sample_value("arborist_draft_misfits_total") == 1


def test_kv_use_is_over_all_workers_of_a_kind() -> None:
    """Reserved over all positions; a worker that said nothing yet does not count."""
    targets = [link(kv(100, 1000)), link(kv(500, 1000)), link(None)]
    drafts = [link(SimpleNamespace(info=kv(30, 40)))]
    workers = Workers(present_targets=targets, drafts=drafts)
    watch, registry = watching(workers)
    watch.look()

    def usage(role: str) -> float | None:
        return registry.get_sample_value("arborist_kv_cache_usage_perc", {"role": role})

    assert (usage("target"), usage("draft")) == (0.3, 0.75)
    workers.present_targets.clear()
    watch.look()
    assert (usage("target"), usage("draft")) == (0.0, 0.75)
