"""Checkpoints of a training run: safetensors and JSON, written beside and then swapped in."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

STATE_FOLDER = "state"
PROGRESS = "progress.json"


def save_run_state(
    run_folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
) -> None:
    """Write weights, optimizer state and progress; a crash leaves the old state or the new.

    Args:
        run_folder: of the run; the state goes to its ``state`` folder.
        model: whose ``state_dict`` is kept.
        optimizer: whose per-parameter tensors are kept, in parameter order.
        progress: JSON-ready values such as the next step.
    """
    fresh = run_folder / f"{STATE_FOLDER}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    weights = {
        name: tensor.detach().contiguous().clone().cpu()
        for name, tensor in model.state_dict().items()
    }
    save_file(weights, fresh / "model.safetensors")
    moments = {
        f"{index}.{name}": value.contiguous().cpu()
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    save_file(moments, fresh / "optimizer.safetensors")
    (fresh / PROGRESS).write_text(json.dumps(progress, indent=1) + "\n")
    old = run_folder / f"{STATE_FOLDER}.old"
    current = run_folder / STATE_FOLDER
    if current.exists():
        # Without a current state the old one is all there is: it goes last.
        shutil.rmtree(old, ignore_errors=True)
        os.replace(current, old)
    os.replace(fresh, current)
    shutil.rmtree(old, ignore_errors=True)


def load_run_state(
    run_folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Restore what :func:`save_run_state` wrote.

    Args:
        run_folder: of the run.
        model: takes the weights.
        optimizer: takes the moments; must have the same parameters in the same order.
    Returns:
        the progress, or None when the run has no state yet.
    Raises:
        RuntimeError: the weights do not fit the model.
    """
    current = _newest(run_folder)
    if current is None:
        return None
    model.load_state_dict(load_file(current / "model.safetensors"))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(current / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return read_progress(run_folder)


def read_progress(run_folder: Path) -> dict[str, Any] | None:
    """What :func:`save_run_state` was told, or None when the run has no state yet."""
    current = _newest(run_folder)
    if current is None:
        return None
    progress: dict[str, Any] = json.loads((current / PROGRESS).read_text())
    return progress


def _newest(run_folder: Path) -> Path | None:
    for name in (STATE_FOLDER, f"{STATE_FOLDER}.old"):
        if (run_folder / name).exists():
            return run_folder / name
    return None
