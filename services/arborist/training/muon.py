"""Muon: momentum whose matrix updates are orthogonalised by a Newton-Schulz iteration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch

Task = tuple[torch.Tensor, dict[str, Any]]
RunEach = Callable[[Callable[[Task], None], list[Task]], None]


def _one_by_one(function: Callable[[Task], None], tasks: list[Task]) -> None:
    for task in tasks:
        function(task)


class Muon(torch.optim.Optimizer):
    """Muon for weight matrices, AdamW for everything else, in one optimizer.

    A parameter group with ``use_muon=True`` takes matrices only. The iteration runs in the
    parameter's own dtype: CPUs without bf16 units are slower in bf16, unlike GPUs.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        iterations: int = 5,
        run_each: RunEach = _one_by_one,
    ) -> None:
        """Take parameter groups.

        Args:
        params: groups with keys ``params``, ``lr``, ``use_muon``, ``weight_decay``.
        momentum: of Muon groups (Nesterov).
        betas: of AdamW groups.
        eps: of AdamW groups.
        iterations: Newton-Schulz iterations.
        run_each: runs the updates of all parameters, in threads if it likes.
        """
        self._run_each = run_each
        defaults = {
            "lr": 1e-3,
            "use_muon": False,
            "weight_decay": 0.0,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "iterations": iterations,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update from the parameters' gradients; parameters without one are skipped."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._run_each(
            self._update,
            [
                (parameter, group)
                for group in self.param_groups
                for parameter in group["params"]
                if parameter.grad is not None
            ],
        )
        return loss

    @torch.no_grad()
    def _update(self, task: Task) -> None:
        parameter, group = task
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        if group["use_muon"]:
            self._muon_update(parameter, group)
        else:
            self._adam_update(parameter, group)

    def _muon_update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient = parameter.grad
        if gradient is None:
            return
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(state["momentum"], group["momentum"])
        update = orthogonalise(update, group["iterations"])
        rows, columns = update.shape
        # Wide matrices keep unit spectral norm; tall ones get the factor that keeps their RMS gain.
        parameter.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)

    def _adam_update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["num_updates"] = torch.zeros((), dtype=torch.float32)
            state["mean"] = torch.zeros_like(parameter)
            state["variance"] = torch.zeros_like(parameter)
        gradient = parameter.grad
        if gradient is None:
            return
        beta1, beta2 = group["betas"]
        state["num_updates"] += 1
        count = float(state["num_updates"])
        state["mean"].lerp_(gradient, 1 - beta1)
        state["variance"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = (state["variance"] / (1 - beta2**count)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["mean"], scale, value=-group["lr"] / (1 - beta1**count))


def orthogonalise(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Nearest (semi-)orthogonal matrix, roughly: singular values end near 1.

    Args:
        matrix: [rows, columns], floating.
        iterations: of the quintic Newton-Schulz polynomial.
    Returns:
        [rows, columns] of the same dtype.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    transposed = matrix.shape[0] > matrix.shape[1]
    x: torch.Tensor = matrix.T if transposed else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if transposed else x
