"""What a process must find in its environment before it loads torch and gRPC."""

import os
import subprocess
import sys

import pytest

from arborist.common.threads_config import apply_grpc_environment, thread_environment


def test_an_operators_own_grpc_experiments_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set already is not touched."""
    monkeypatch.setenv("GRPC_EXPERIMENTS", "mine")

    apply_grpc_environment()

    assert os.environ["GRPC_EXPERIMENTS"] == "mine"


@pytest.mark.parametrize(
    "module", ["arborist.cli.main", "arborist.draft.__main__", "arborist.target.__main__"]
)
def test_what_a_process_starts_with_loads_neither_torch_nor_grpc(module: str) -> None:
    """The environment counts when they are imported, so nothing may do that before it is set."""
    code = f"import sys, {module}; print({{'grpc', 'torch'}} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )

    assert done.stdout.strip() == "set()"


def test_workers_and_controllers_get_the_same_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process sets for itself is what a cluster is told to set for it."""
    monkeypatch.delenv("GRPC_EXPERIMENTS", raising=False)

    apply_grpc_environment()

    assert os.environ["GRPC_EXPERIMENTS"] == thread_environment(0)["GRPC_EXPERIMENTS"]
