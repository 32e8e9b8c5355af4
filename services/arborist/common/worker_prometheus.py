"""A worker's numbers as Prometheus series."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from arborist.core.prefix import PrefixCounts

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class PrometheusWorkerMetrics:
    """Implements the worker shell's `WorkerMetrics`."""

    def __init__(self, registry: CollectorRegistry, role: str) -> None:
        """Registers the series.

        Args:
            registry: The process's registry.
            role: ``draft`` or ``target``, the value of the label ``role``.
        """
        label = ("role",)
        self._queued_rows = Gauge(
            "arborist_worker_queued_rows", "Commands waiting or running.", label, registry=registry
        ).labels(role)
        self._sessions = Gauge(
            "arborist_worker_sessions", "Sessions open.", label, registry=registry
        ).labels(role)
        self._kv_reserved = Gauge(
            "arborist_kv_reserved_tokens", "KV positions reserved.", label, registry=registry
        ).labels(role)
        self._kv_capacity = Gauge(
            "arborist_kv_capacity_tokens", "KV positions in all.", label, registry=registry
        ).labels(role)
        self._dropped_spans = Gauge(
            "arborist_dropped_spans", "Spans that were not delivered.", label, registry=registry
        ).labels(role)
        self._role = role
        self._forward_seconds = Histogram(
            "arborist_forward_seconds",
            "Duration of a forward.",
            ("role", "kind"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._forward_rows = Histogram(
            "arborist_forward_rows",
            "Commands of a forward.",
            ("role", "kind"),
            buckets=_ROWS,
            registry=registry,
        )
        self._forward_tokens = Counter(
            "arborist_forward_tokens_total",
            "Tokens and nodes that went through the model.",
            ("role", "kind"),
            registry=registry,
        )
        self._errors = Counter(
            "arborist_command_errors_total",
            "Commands that failed, by reason of the error table.",
            ("role", "reason"),
            registry=registry,
        )

        self._prefix_queries = Counter(
            "arborist_prefix_cache_queries_total",
            "Tokens that sessions might have taken over from earlier ones.",
            label,
            registry=registry,
        ).labels(role)
        self._prefix_hits = Counter(
            "arborist_prefix_cache_hits_total",
            "Tokens that sessions took over from earlier ones.",
            label,
            registry=registry,
        ).labels(role)
        self._prefix_tokens = Gauge(
            "arborist_prefix_cache_tokens",
            "Tokens kept for sessions to come.",
            label,
            registry=registry,
        ).labels(role)
        self._prefix_bytes = Gauge(
            "arborist_prefix_cache_bytes",
            "Memory set aside for what is kept, KV and features, used or not.",
            label,
            registry=registry,
        ).labels(role)
        self._prefix_counts = PrefixCounts()

    def set_kv_capacity_tokens(self, count: int) -> None:
        """Takes the number of KV positions, known once the model is loaded."""
        self._kv_capacity.set(count)

    def watch_dropped_spans(self, count: Callable[[], float]) -> None:
        """Reads the number of lost spans whenever somebody asks for the metrics."""
        self._dropped_spans.set_function(count)

    def set_queued_rows(self, count: int) -> None:
        """Takes the number of commands waiting for or in a forward."""
        self._queued_rows.set(count)

    def set_sessions(self, count: int) -> None:
        """Takes the number of sessions open."""
        self._sessions.set(count)

    def set_kv_reserved_tokens(self, count: int) -> None:
        """Takes the number of KV positions reserved."""
        self._kv_reserved.set(count)

    def observe_forward(self, kind: str, num_rows: int, num_tokens: int, seconds: float) -> None:
        """Takes one forward; see `WorkerMetrics`."""
        self._forward_seconds.labels(self._role, kind).observe(seconds)
        self._forward_rows.labels(self._role, kind).observe(num_rows)
        self._forward_tokens.labels(self._role, kind).inc(num_tokens)

    def count_error(self, reason: str) -> None:
        """Takes one command that failed, by its reason in the error table."""
        self._errors.labels(self._role, reason).inc()

    def observe_prefix_cache(self, counts: PrefixCounts) -> None:
        """Takes what the prefix cache did since the worker's start."""
        before, self._prefix_counts = self._prefix_counts, counts
        self._prefix_queries.inc(counts.num_queried - before.num_queried)
        self._prefix_hits.inc(counts.num_hits - before.num_hits)
        self._prefix_tokens.set(counts.num_cached)
        self._prefix_bytes.set(counts.num_bytes)
