"""A controller's connection to the worker shell: what an operator reads when a worker ends."""

from __future__ import annotations

import logging

import pytest
from tests.contract.workers import served_draft, until

from arborist.orchestrator.grpc_draft_link import draft_protocol
from arborist.orchestrator.worker_connection import ConnectionSettings, WorkerConnection


async def test_a_worker_that_stops_as_told_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """It is said at INFO, as is that it cannot be reached afterwards; a new one is connected to."""
    caplog.set_level(logging.INFO, "arborist.orchestrator")
    settings = ConnectionSettings(backoff_first_s=0.01, backoff_max_s=0.02)
    async with served_draft() as served:
        connection = WorkerConnection(draft_protocol(), served.address, "c", settings, lambda: None)
        connection.start()
        await until(lambda: connection.attached)
        served.worker.drain()
        await served.worker.stop()
        await until(lambda: not connection.attached)
    await until(lambda: "cannot be reached" in caplog.text or "not reach" in caplog.text)
    await connection.aclose()

    assert "the worker stops" in caplog.text
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
