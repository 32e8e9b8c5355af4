"""What a worker or controller that is brought along inherits."""

import sys
from pathlib import Path

import pytest

from arborist.cli.worker_process import WorkerProcess
from arborist.common.api_key import key_digest

KEY = "a-key-of-16-chars"


async def test_it_gets_digests_in_place_of_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller asks for the same keys; no process has one that it does not need."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nprintenv > {tmp_path}/seen\necho ready: grpc://127.0.0.1:1\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setenv("ARBORIST_CONTROLLER__API_KEYS", KEY)
    monkeypatch.setenv("ARBORIST_API_KEY", KEY)

    process = WorkerProcess(["serve-controller"])
    await process.start(30)
    await process.stop(30)

    seen = (tmp_path / "seen").read_text()
    assert KEY not in seen
    assert f"ARBORIST_CONTROLLER__API_KEYS={key_digest(KEY.encode())}" in seen
