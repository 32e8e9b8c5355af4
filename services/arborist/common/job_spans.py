"""The spans of a command that went through a forward."""

from __future__ import annotations

from arborist.common.command import RunWork
from arborist.common.job import Job
from arborist.common.span_sink import SpanSink
from arborist.core.errors import ArboristError
from arborist.core.pool import Pool


def record_spans(spans: SpanSink, job: Job, body: RunWork[object], batch_rows: int) -> None:
    """Records one span, or one per level of a pool.

    Args:
        spans: Where they go.
        job: A traced command that has its answer.
        body: What it asked for.
        batch_rows: Commands of its forward.
    """
    if isinstance(job.answer, Pool):
        _record_levels(spans, job, body, job.answer, batch_rows)
        return
    attributes: dict[str, str | int | float | bool] = {
        "rows": job.num_tokens,
        "batch_rows": batch_rows,
        "queue_ms": job.queue_ms,
        "compute_ms": job.compute_ms,
    }
    if isinstance(job.answer, ArboristError):
        attributes["error.type"] = job.answer.reason
    # What was computed before the command came is no part of its span.
    age_ns = job.end_ns - job.received_ns
    duration_ns = min(int((job.queue_ms + job.compute_ms) * 1e6), age_ns)
    spans.record(
        f"worker.{body.kind}",
        job.command.traceparent,
        job.end_unix_ns - duration_ns,
        job.end_unix_ns,
        attributes,
    )


def _record_levels(
    spans: SpanSink, job: Job, body: RunWork[object], pool: Pool, batch_rows: int
) -> None:
    """Records the levels end to end, the last one ending with the job."""
    parents = body.level_traceparents
    end_ns = job.end_unix_ns
    for index, level in reversed(list(enumerate(pool.levels))):
        start_ns = end_ns - int(level.compute_ms * 1e6)
        spans.record(
            "worker.expand",
            parents[index] if index < len(parents) else job.command.traceparent,
            start_ns,
            end_ns,
            {
                "rows": len(level.frontier),
                "batch_rows": batch_rows,
                # Only the first level waited: the others followed at once.
                "queue_ms": 0.0 if index else job.queue_ms,
                "compute_ms": level.compute_ms,
            },
        )
        end_ns = start_ns
