"""What the controller's metrics show of its workers: late results, misfits, KV use."""

from __future__ import annotations

import asyncio

from arborist.common.serving_metrics import ServingMetrics
from arborist.common.worker_info import WorkerInfo
from arborist.orchestrator.worker_pool import GrpcWorkerPool

# Workers are asked for their load every two seconds: looking more often would show nothing new.
_PERIOD_S = 1.0


class WorkerWatch:
    """Looks at the workers now and then, on the event loop that owns them.

    Prometheus reads from a thread of its own, where links come and go under its hands; so the
    series are set here and only read there.
    """

    def __init__(
        self, workers: GrpcWorkerPool, metrics: ServingMetrics, *, period_s: float = _PERIOD_S
    ) -> None:
        """Prepares; `run` looks.

        Args:
            workers: Every worker.
            metrics: Takes what was seen.
            period_s: Seconds between two looks.
        """
        self._workers = workers
        self._metrics = metrics
        self._period_s = period_s
        self._num_late = 0
        self._num_misfits = 0

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(self._period_s)

    def look(self) -> None:
        """Takes what the workers show now."""
        num_late, num_misfits = self._workers.num_late, self._workers.num_misfits
        self._metrics.count_late_results(num_late - self._num_late)
        self._metrics.count_misfits(num_misfits - self._num_misfits)
        self._num_late, self._num_misfits = num_late, num_misfits
        targets = [link.connection.info for link in self._workers.present_targets]
        drafts = [link.connection.info for link in self._workers.drafts]
        self._show_kv("target", [info for info in targets if info is not None])
        self._show_kv("draft", [info.info for info in drafts if info is not None])

    def _show_kv(self, role: str, infos: list[WorkerInfo]) -> None:
        reserved = sum(info.kv_reserved_tokens for info in infos)
        capacity = sum(info.kv_capacity_tokens for info in infos)
        self._metrics.set_kv_usage(role, reserved / capacity if capacity else 0.0)
