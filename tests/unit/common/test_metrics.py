"""The numbers every process shows, and the line a controller logs."""

import urllib.request

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from arborist.common.config import ConfigError
from arborist.common.metrics_server import OFF, MetricsServer, new_registry
from arborist.common.serving_metrics import RoundSample, ServingMetrics
from arborist.common.status_line import StatusLine
from arborist.common.worker_prometheus import PrometheusWorkerMetrics
from arborist.core.prefix import PrefixCounts


def sample(accepted_count: int, *, drafted: bool = True) -> RoundSample:
    """A round of no interest but for what was accepted."""
    return RoundSample(
        num_tokens=accepted_count + 1,
        num_draft_tokens=10 if drafted else 0,
        accepted_count=accepted_count,
        drafted=drafted,
        draft_s=0.01,
        verify_s=0.02,
        transport_s=0.003,
        controller_s=0.001,
        total_s=0.034,
    )


def values(registry) -> dict[str, float]:
    """Returns every sample as name{labels} → value."""
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for one in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(one.labels.items()))
            found[f"{one.name}{{{labels}}}"] = one.value
    return found


def test_rounds_count_under_the_stems_of_vllm() -> None:
    """Tau can be read off the counters: 1 + accepted / drafts."""
    registry = new_registry()
    metrics = ServingMetrics(registry)
    for accepted_count in (3, 0, 1):
        metrics.observe_round(sample(accepted_count))
    metrics.observe_round(sample(0, drafted=False))
    found = values(registry)

    assert found["arborist_spec_decode_num_drafts_total{}"] == 3
    assert found["arborist_spec_decode_num_draft_tokens_total{}"] == 30
    assert found["arborist_spec_decode_num_accepted_tokens_total{}"] == 4
    stem = "arborist_spec_decode_num_accepted_tokens_per_pos_total"
    assert [found[f"{stem}{{position={one}}}"] for one in range(3)] == [2, 1, 1]
    assert found["arborist_rounds_without_draft_total{}"] == 1
    assert found["arborist_generation_tokens_total{}"] == 8
    assert found["arborist_round_seconds_count{phase=verify}"] == 4
    assert found["arborist_round_seconds_sum{phase=total}"] == pytest.approx(4 * 0.034)
    assert found["arborist_inter_token_latency_seconds_count{}"] == 4


def test_requests_count_from_queue_to_end() -> None:
    """Load, waits and reasons of ending are shown."""
    registry = new_registry()
    metrics = ServingMetrics(registry)
    metrics.set_load(num_running=2, num_waiting=5)
    metrics.observe_admission(prompt_tokens=7, queue_s=0.5)
    metrics.observe_first_token(0.7)
    metrics.observe_finish("stop", 3.0)
    metrics.count_failure("RESOURCE_EXHAUSTED")
    metrics.watch_dropped_spans(lambda: 9)
    found = values(registry)

    assert found["arborist_num_requests_running{}"] == 2
    assert found["arborist_num_requests_waiting{}"] == 5
    assert found["arborist_prompt_tokens_total{}"] == 7
    assert found["arborist_request_queue_time_seconds_sum{}"] == 0.5
    assert found["arborist_time_to_first_token_seconds_sum{}"] == 0.7
    assert found["arborist_generation_tokens_total{}"] == 1
    assert found["arborist_request_success_total{finished_reason=stop}"] == 1
    assert found["arborist_request_failure_total{reason=RESOURCE_EXHAUSTED}"] == 1
    assert found["arborist_dropped_spans{}"] == 9


def test_trouble_with_workers_is_counted() -> None:
    """Late results and misfits add up; KV use is a share per kind of worker."""
    registry = new_registry()
    metrics = ServingMetrics(registry)
    for count in (2, 0, 1):
        metrics.count_late_results(count)
    metrics.count_misfits(1)
    metrics.set_kv_usage("target", 0.25)
    metrics.set_kv_usage("draft", 0.5)
    found = values(registry)

    assert found["arborist_late_results_total{}"] == 3
    assert found["arborist_draft_misfits_total{}"] == 1
    assert found["arborist_kv_cache_usage_perc{role=target}"] == 0.25
    assert found["arborist_kv_cache_usage_perc{role=draft}"] == 0.5


def test_a_worker_shows_load_and_forwards() -> None:
    """Series carry the worker's role and the kind of forward."""
    registry = new_registry()
    metrics = PrometheusWorkerMetrics(registry, "target")
    metrics.set_kv_capacity_tokens(1000)
    metrics.set_kv_reserved_tokens(300)
    metrics.set_sessions(3)
    metrics.set_queued_rows(2)
    metrics.observe_forward("verify", num_rows=2, num_tokens=50, seconds=0.02)
    metrics.count_error("STALE_STAMP")
    for counts in (PrefixCounts(100, 40, 60, 800), PrefixCounts(150, 70, 50, 900)):
        metrics.observe_prefix_cache(counts)
    found = values(registry)

    assert found["arborist_kv_capacity_tokens{role=target}"] == 1000
    assert found["arborist_kv_reserved_tokens{role=target}"] == 300
    assert found["arborist_worker_sessions{role=target}"] == 3
    assert found["arborist_worker_queued_rows{role=target}"] == 2
    assert found["arborist_forward_tokens_total{kind=verify,role=target}"] == 50
    assert found["arborist_forward_rows_sum{kind=verify,role=target}"] == 2
    assert found["arborist_command_errors_total{reason=STALE_STAMP,role=target}"] == 1
    assert found["arborist_prefix_cache_queries_total{role=target}"] == 150
    assert found["arborist_prefix_cache_hits_total{role=target}"] == 70
    assert found["arborist_prefix_cache_tokens{role=target}"] == 50
    assert found["arborist_prefix_cache_bytes{role=target}"] == 900


def test_metrics_are_served_over_http() -> None:
    """Port 0 takes any port; two processes never share a registry."""
    registry = new_registry()
    ServingMetrics(registry).set_load(1, 0)
    server = MetricsServer(registry, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.port}/metrics"
    with urllib.request.urlopen(url, timeout=5) as response:
        text = response.read().decode()
    server.close()
    server.close()

    assert "arborist_num_requests_running 1.0" in text
    assert "process_resident_memory_bytes" in text


def test_a_port_in_use_is_one_line() -> None:
    """The message names the field, the port and the way out."""
    first = MetricsServer(new_registry(), "127.0.0.1", 0)
    try:
        with pytest.raises(ConfigError, match=rf"metrics_port = {first.port}: .* is in use; give"):
            MetricsServer(new_registry(), "127.0.0.1", first.port)
    finally:
        first.close()


def test_metrics_can_be_off() -> None:
    """-1 opens nothing."""
    server = MetricsServer(new_registry(), "127.0.0.1", OFF)

    assert server.port == OFF
    server.close()


def test_the_status_line_tells_the_last_period() -> None:
    """Throughput, load, tau and acceptance per position of this period alone."""
    line = StatusLine(now_s=100.0)
    for accepted_count in (2, 2, 1, 0):
        line.observe_round(accepted_count + 1, accepted_count, drafted=True)
    first = line.next(110.0, num_running=1, num_waiting=2)
    line.observe_round(1, 0, drafted=False)
    second = line.next(120.0, num_running=0, num_waiting=0)

    assert first == (
        "throughput 0.9 tokens/s, running 1, waiting 2, tau 2.25, accepted per position 0.75 0.50"
    )
    assert second == "throughput 0.1 tokens/s, running 0, waiting 0"


def test_an_idle_server_is_quiet() -> None:
    """One line says that it became idle, then none."""
    line = StatusLine(now_s=0.0)
    line.observe_round(1, 0, drafted=True)
    lines = [line.next(now_s, 0, 0) for now_s in (10.0, 20.0, 30.0)]

    assert lines == [
        "throughput 0.1 tokens/s, running 0, waiting 0, tau 1.00",
        "throughput 0.0 tokens/s, running 0, waiting 0",
        None,
    ]
