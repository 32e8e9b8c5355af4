"""A controller's numbers as Prometheus series, under the stems that dashboards know from vLLM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_ROUND_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0)
_FIRST_TOKEN_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_TOKEN_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)
_REQUEST_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


@dataclass(frozen=True, slots=True)
class RoundSample:
    """What the metrics want to know about one delivered round.

    Attributes:
        num_tokens: Tokens committed.
        num_draft_tokens: Drafted nodes verified.
        accepted_count: Drafted tokens accepted, bonus excluded.
        drafted: Whether a draft took part.
        draft_s: Draft forwards, in seconds.
        verify_s: Target forward, in seconds.
        transport_s: Queues, wire and event loops, in seconds.
        controller_s: The controller's own work, in seconds.
        total_s: The whole round, in seconds.
    """

    num_tokens: int
    num_draft_tokens: int
    accepted_count: int
    drafted: bool
    draft_s: float
    verify_s: float
    transport_s: float
    controller_s: float
    total_s: float


class ServingMetrics:
    """Counts requests and rounds; a few microseconds per round."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Registers the series in the process's registry."""
        self._num_drafts = _counter(registry, "spec_decode_num_drafts", "Rounds with a draft.")
        self._draft_tokens = _counter(
            registry, "spec_decode_num_draft_tokens", "Drafted nodes verified."
        )
        self._accepted_tokens = _counter(
            registry, "spec_decode_num_accepted_tokens", "Drafted tokens accepted."
        )
        self._accepted_at = _counter(
            registry,
            "spec_decode_num_accepted_tokens_per_pos",
            "Rounds whose accepted path reached the position (0 = first level).",
            "position",
        )
        self._undrafted = _counter(
            registry, "rounds_without_draft", "Rounds that ran without a draft."
        )
        self._prompt_tokens = _counter(registry, "prompt_tokens", "Prompt tokens of requests.")
        self._generation_tokens = _counter(registry, "generation_tokens", "Tokens committed.")
        self._finished = _counter(
            registry, "request_success", "Requests finished, by reason.", "finished_reason"
        )
        self._failed = _counter(
            registry, "request_failure", "Requests failed, by reason of the error table.", "reason"
        )
        self._running = _gauge(registry, "num_requests_running", "Requests being decoded.")
        self._waiting = _gauge(registry, "num_requests_waiting", "Requests waiting.")
        self._dropped_spans = _gauge(registry, "dropped_spans", "Spans that were not delivered.")
        self._late_results = _counter(
            registry, "late_results", "Workers' results dropped because their deadline had passed."
        )
        self._misfits = _counter(
            registry, "draft_misfits", "Pairs of draft and target refused because they do not fit."
        )
        self._refused_keys = _counter(
            registry, "refused_keys", "Requests refused for want of a known API key.", "door"
        )
        for door in ("http", "grpc"):  # Shown from the start: what is 0 can be seen to grow.
            self._refused_keys.labels(door)
        self._kv_usage = _gauge(
            registry,
            "kv_cache_usage_perc",
            "KV positions reserved at the connected workers, as a share of all: 1 = full.",
            "role",
        )
        self._queue_s = _histogram(
            registry, "request_queue_time_seconds", "Wait before decoding.", _FIRST_TOKEN_S
        )
        self._first_token_s = _histogram(
            registry, "time_to_first_token_seconds", "Until the first token.", _FIRST_TOKEN_S
        )
        self._inter_token_s = _histogram(
            registry, "inter_token_latency_seconds", "Round time per token of it.", _TOKEN_S
        )
        self._request_s = _histogram(
            registry, "e2e_request_latency_seconds", "Whole requests.", _REQUEST_S
        )
        self._round_s = Histogram(
            "arborist_round_seconds",
            "Where the time of a round goes.",
            ("phase",),
            buckets=_ROUND_S,
            registry=registry,
        )
        # Looked up once: a round touches each of them.
        phases = ("draft", "verify", "transport", "controller", "total")
        self._phases = [self._round_s.labels(phase) for phase in phases]

    def set_load(self, num_running: int, num_waiting: int) -> None:
        """Takes how many requests are decoded and how many wait."""
        self._running.set(num_running)
        self._waiting.set(num_waiting)

    def watch_dropped_spans(self, count: Callable[[], float]) -> None:
        """Reads the number of lost spans whenever somebody asks for the metrics."""
        self._dropped_spans.set_function(count)

    def count_late_results(self, count: int) -> None:
        """Takes how many more results came after their deadline."""
        self._late_results.inc(count)

    def count_misfits(self, count: int) -> None:
        """Takes how many more pairs of draft and target were refused."""
        self._misfits.inc(count)

    def count_refused_key(self, door: str) -> None:
        """Takes a request that came without a key that is let in.

        Args:
            door: ``http`` or ``grpc``.
        """
        self._refused_keys.labels(door).inc()

    def set_kv_usage(self, role: str, share: float) -> None:
        """Takes the share of KV positions that is reserved.

        Args:
            role: ``draft`` or ``target``.
            share: In [0, 1], over all connected workers of the role; 0 when there is none.
        """
        self._kv_usage.labels(role).set(share)

    def observe_admission(self, prompt_tokens: int, queue_s: float) -> None:
        """Takes a request that begins to be decoded."""
        self._prompt_tokens.inc(prompt_tokens)
        self._queue_s.observe(queue_s)

    def observe_first_token(self, seconds: float) -> None:
        """Takes the time from a request's arrival to its first token."""
        self._generation_tokens.inc()
        self._first_token_s.observe(seconds)

    def observe_round(self, sample: RoundSample) -> None:
        """Takes one delivered round."""
        self._generation_tokens.inc(sample.num_tokens)
        if sample.num_tokens:
            self._inter_token_s.observe(sample.total_s / sample.num_tokens)
        if sample.drafted:
            self._num_drafts.inc()
            self._draft_tokens.inc(sample.num_draft_tokens)
            self._accepted_tokens.inc(sample.accepted_count)
            for position in range(sample.accepted_count):
                self._accepted_at.labels(position).inc()
        else:
            self._undrafted.inc()
        seconds = (
            sample.draft_s,
            sample.verify_s,
            sample.transport_s,
            sample.controller_s,
            sample.total_s,
        )
        for phase, value in zip(self._phases, seconds, strict=True):
            phase.observe(value)

    def observe_finish(self, finish_reason: str, seconds: float) -> None:
        """Takes a request that ended well, with its whole duration."""
        self._finished.labels(finish_reason).inc()
        self._request_s.observe(seconds)

    def count_failure(self, reason: str) -> None:
        """Takes a request that failed or was refused, by its reason in the error table."""
        self._failed.labels(reason).inc()


def _counter(registry: CollectorRegistry, stem: str, text: str, *labels: str) -> Counter:
    return Counter(f"arborist_{stem}", text, labels, registry=registry)


def _gauge(registry: CollectorRegistry, stem: str, text: str, *labels: str) -> Gauge:
    return Gauge(f"arborist_{stem}", text, labels, registry=registry)


def _histogram(
    registry: CollectorRegistry, stem: str, text: str, buckets: tuple[float, ...]
) -> Histogram:
    return Histogram(f"arborist_{stem}", text, buckets=buckets, registry=registry)
