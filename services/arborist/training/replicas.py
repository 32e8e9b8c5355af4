"""Gradients of a batch by several threads, each with one CPU core and its own gradient buffers.

On a machine that is shared, one OpenMP job over all cores waits at every operation for its slowest
thread. Independent threads that take small passes from a queue do not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch

Part = TypeVar("Part")
Item = TypeVar("Item")


class Replicas:
    """Models that share their weights with the first one but not their gradients."""

    def __init__(self, model: torch.nn.Module, count: int) -> None:
        """Copy the model.

        Args:
        model: the first replica; its weights are the weights of all.
        count: replicas and threads; 1 computes in the calling thread.
        """
        self._models: SimpleQueue[torch.nn.Module] = SimpleQueue()
        self._all = [model]
        for _ in range(count - 1):
            other = copy.deepcopy(model)
            for own, shared in zip(other.parameters(), model.parameters(), strict=True):
                own.data = shared.data
            self._all.append(other)
        for replica in self._all:
            self._models.put(replica)
        self._pool = ThreadPoolExecutor(count) if count > 1 else None

    def map(self, function: Callable[[Item], None], items: Iterable[Item]) -> None:
        """Call ``function`` on every item, in the threads when there are several."""
        if self._pool is None:
            for item in items:
                function(item)
        else:
            list(self._pool.map(lambda item: _on_one_core(function, item), items))

    def backward(
        self, loss_of: Callable[[torch.nn.Module, Part], torch.Tensor], parts: Iterable[Part]
    ) -> float:
        """Sum the gradients of all parts into the first model's ``.grad``.

        Args:
            loss_of: loss of a part under the model given; called in any thread.
            parts: independent pieces of a batch.
        Returns:
            the sum of the losses.
        """
        losses: list[float] = []

        def work(part: Part) -> None:
            model = self._models.get()
            try:
                loss = loss_of(model, part)
                loss.backward()  # type: ignore[no-untyped-call]
                losses.append(float(loss.detach()))
            finally:
                self._models.put(model)

        self.map(work, parts)
        first, *others = [list(model.parameters()) for model in self._all]
        for parameters in others:
            for own, other in zip(first, parameters, strict=True):
                if other.grad is not None:
                    own.grad = other.grad if own.grad is None else own.grad.add_(other.grad)
                    other.grad = None
        return sum(losses)


def _on_one_core(function: Callable[[Item], None], item: Item) -> None:
    torch.set_num_threads(1)
    function(item)
