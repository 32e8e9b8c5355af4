"""How many tasks a process's event loop holds: what grows when something is never ended."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, Gauge


def watch_event_loop(registry: CollectorRegistry) -> None:
    """Registers the gauge for the running loop; counted only when somebody asks.

    Args:
        registry: The process's registry, without this gauge yet.
    """
    loop = asyncio.get_running_loop()
    gauge = Gauge("arborist_event_loop_tasks", "Tasks of the event loop.", registry=registry)
    # Prometheus reads from a thread of its own; `all_tasks` copes with tasks that come and go.
    gauge.set_function(lambda: len(asyncio.all_tasks(loop)))
