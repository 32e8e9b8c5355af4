"""Training loop of an EAGLE head."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from arborist.core.errors import InvalidArgumentError
from arborist.training.acceptance import MeasureAcceptance
from arborist.training.head_objective import HeadBatch, HeadObjective
from arborist.training.metrics_file import METRICS, MetricsFile
from arborist.training.muon import Muon
from arborist.training.records import EncodedRecord
from arborist.training.replicas import Replicas
from arborist.training.run_state import load_run_state, read_progress, save_run_state
from arborist.training.schedule import Schedule
from arborist.training.state_cache import StateCache
from arborist.training.target_states import StateSource
from arborist.training.trained_head import TrainedHead


@dataclass(frozen=True)
class HeadRun:
    """Settings of a run. A step takes ``passes_per_step`` passes of about ``tokens_per_pass``."""

    num_steps: int
    tokens_per_pass: int = 1024
    passes_per_step: int = 4
    warmup_steps: int = 20
    decay_share: float = 0.5
    clip_norm: float = 1.0
    save_every_s: float = 180.0
    log_every: int = 10
    validate_every: int = 100
    cache_bytes: int = 4 << 30
    seed: int = 0
    device: str = "cpu"
    dtype: str = "fp32"


class HeadTrainer:
    """Trains a head on sequences of its target; stops and resumes at any step."""

    def __init__(
        self,
        model: TrainedHead,
        source: StateSource,
        optimizer: Muon,
        examples: Sequence[EncodedRecord],
        validation: Sequence[EncodedRecord],
        objective: HeadObjective,
        run: HeadRun,
        folder: Path,
        *,
        replicas: Replicas | None = None,
        measure: MeasureAcceptance | None = None,
        recipe: Mapping[str, object] | None = None,
    ) -> None:
        """Take a head, resuming the run in the folder if there is one.

        Args:
            model: in fp32, one layer, on ``run.device``.
            source: the target's states and tables.
            optimizer: of the head.
            examples: sequences with the weight of each token as a label.
            validation: the same, never trained on.
            objective: what is minimised.
            run: settings.
            folder: state and log go there; a state already there is resumed.
            replicas: of the head, when several threads share the work.
            measure: decodes held-out prompts at every validation; None = not measured.
            recipe: what a resumed run must not change, in JSON's types.
        Raises:
            InvalidArgumentError: the folder holds a run with another recipe.
        """
        self.model = model
        self._source = source
        self._optimizer = optimizer
        self._examples = examples
        self._validation = validation
        self._objective = objective
        self._run = run
        self._folder = folder
        self._replicas = replicas or Replicas(model, 1)
        self._measure = measure
        self._recipe = dict(recipe or {})
        self._schedule = Schedule(run.num_steps, run.warmup_steps, run.decay_share)
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        self._cache = StateCache(source, run.cache_bytes)
        self._plans: dict[int, list[list[int]]] = {}
        self._metrics = MetricsFile(folder / METRICS)
        self._is_updating = False
        self.step = 0
        self.num_tokens = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    def train(self) -> None:
        """Run to the last step, saving now and then and at the end (also when interrupted)."""
        self.model.train()
        saved_at = time.monotonic()
        bar = tqdm(total=self._run.num_steps, initial=self.step, unit="step", mininterval=5)
        shown: dict[str, object] = {}
        try:
            while self.step < self._run.num_steps:
                entry = self.train_step()
                bar.update()
                shown |= {"loss": f"{entry['loss']:.3f}", "agree": entry["agreement"]}
                bar.set_postfix(shown)
                if self.step % self._run.log_every == 0:
                    self._metrics.add({"step": self.step, "num_tokens": self.num_tokens, **entry})
                # The end is validated by whoever called, once the last state is safe.
                if self.step % self._run.validate_every == 0 and self.step < self._run.num_steps:
                    result = self.validate()
                    shown["tau"] = result.get("validation_tau")
                    bar.write(describe_validation(result))
                if time.monotonic() - saved_at >= self._run.save_every_s:
                    self.save()
                    saved_at = time.monotonic()
        finally:
            bar.close()
            # A step cut short in the middle of its update is taken again from the last state.
            if not self._is_updating:
                self.save()

    def train_step(self) -> dict[str, object]:
        """One update; returns loss per weighted token and agreement with the target by pass."""
        factor = self._schedule.factor(self.step)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        first = self.step * self._run.passes_per_step
        numbers = range(first, first + self._run.passes_per_step)
        groups = {number: self._group(number) for number in numbers}
        indices = [index for group in groups.values() for index in group]
        weight = sum(_label_weight(self._examples[index]) for index in indices)
        agreed: list[list[int]] = []

        def loss_of(model: torch.nn.Module, number: int) -> Tensor:
            keys = groups[number]
            total, counts = self._pass(model, [self._examples[i] for i in keys], keys, number)
            agreed.append(counts)
            return total / weight

        loss = self._replicas.backward(loss_of, groups)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._run.clip_norm)
        self._is_updating = True
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._is_updating = False
        self.num_tokens += sum(len(self._examples[index]) for index in indices)
        labels = sum(_num_labels(self._examples[index]) for index in indices)
        return {"loss": loss, "agreement": _shares(agreed, labels)}

    @torch.no_grad()
    def validate(self) -> dict[str, object]:
        """Loss, agreement and tau on what is held out, also written to the log."""
        self.model.eval()
        total, labels, weight = 0.0, 0, 0.0
        agreed = []
        for number, example in enumerate(self._validation):
            # Keys beside those of the examples: their states are remembered too.
            key = len(self._examples) + number
            loss, counts = self._pass(self.model, [example], [key], -1 - number)
            total += float(loss)
            agreed.append(counts)
            labels += _num_labels(example)
            weight += _label_weight(example)
        result: dict[str, object] = {
            "step": self.step,
            "validation_loss": total / max(1.0, weight),
            "validation_agreement": _shares(agreed, labels),
        }
        if self._measure is not None:
            found = self._measure(self.model)
            if found is not None:
                result["validation_tau"] = round(found.tau, 3)
                result["validation_rounds"] = found.num_rounds
                result["validation_prompts"] = found.num_prompts
                result["validation_s"] = round(found.elapsed_s, 2)
        self.model.train()
        self._metrics.add(result)
        return result

    def save(self) -> None:
        """Write the state of the run."""
        progress = {
            "step": self.step,
            "num_tokens": self.num_tokens,
            "run": asdict(self._run),
            "recipe": self._recipe,
        }
        save_run_state(self._folder, self.model, self._optimizer, progress)

    def _resume(self) -> None:
        begun = read_progress(self._folder)
        if begun is None:
            return
        for name, wanted in self._recipe.items():
            found = begun.get("recipe", {}).get(name)
            if found != wanted:
                raise InvalidArgumentError(
                    name, wanted, f"{found}, as the run in {self._folder} began (or another --out)"
                )
        load_run_state(self._folder, self.model, self._optimizer)
        self.step = begun["step"]
        self.num_tokens = begun["num_tokens"]
        # Steps after the last saved state are trained again, and logged again.
        self._metrics.drop_after(self.step)

    def _pass(
        self,
        model: torch.nn.Module,
        examples: Sequence[EncodedRecord],
        keys: Sequence[int],
        number: int,
    ) -> tuple[Tensor, list[int]]:
        device = torch.device(self._run.device)
        batch = self._batch(examples, keys, number, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._run.dtype == "bf16"):
            return self._objective(
                cast("TrainedHead", model), self._source.readout, self._source.embedding, batch
            )

    def _batch(
        self,
        examples: Sequence[EncodedRecord],
        keys: Sequence[int],
        number: int,
        device: torch.device,
    ) -> HeadBatch:
        """Pads the examples of pass ``number`` on the right: causal attention keeps that out."""
        found = [
            self._cache.states(key, example) for key, example in zip(keys, examples, strict=True)
        ]
        token_ids = [torch.from_numpy(example.token_ids) for example in examples]
        weights = [torch.from_numpy(example.loss_weights) for example in examples]
        features = _padded([one.features for one in found], device)
        shared = all(one.features is one.finals for one in found)
        # Noise that depends on the pass alone: a resumed run draws the same.
        sequence = np.random.SeedSequence((self._run.seed, abs(number), int(number < 0)))
        seed = int(sequence.generate_state(1, np.uint64)[0] >> 1)
        return HeadBatch(
            pad_sequence(token_ids, batch_first=True).to(device),
            pad_sequence(weights, batch_first=True).to(device),
            features,
            features if shared else _padded([one.finals for one in found], device),
            torch.Generator().manual_seed(seed),
        )

    def _group(self, number: int) -> list[int]:
        """Example indices of pass ``number``: a function of the seed and the number alone."""
        epoch = 0
        while number >= len(self._plan(epoch)):
            number -= len(self._plan(epoch))
            epoch += 1
        return self._plan(epoch)[number]

    def _plan(self, epoch: int) -> list[list[int]]:
        if epoch not in self._plans:
            self._plans[epoch] = plan_groups(
                [len(example) for example in self._examples],
                self._run.tokens_per_pass,
                (self._run.seed, epoch),
            )
        return self._plans[epoch]


def plan_groups(
    lengths: Sequence[int], tokens_per_pass: int, seed: tuple[int, ...]
) -> list[list[int]]:
    """Split all examples into groups of like length that fill a pass when padded.

    Args:
        lengths: of the examples, in tokens.
        tokens_per_pass: largest padded size of a group (a longer example stands alone).
        seed: of the shuffle.
    Returns:
        every index once, in groups, in random order.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lengths))
    groups: list[list[int]] = []
    chunk_size = 256
    for start in range(0, len(order), chunk_size):
        chunk = sorted(order[start : start + chunk_size].tolist(), key=lambda i: lengths[i])
        group: list[int] = []
        for index in chunk:
            if group and (len(group) + 1) * lengths[index] > tokens_per_pass:
                groups.append(group)
                group = []
            group.append(index)
        groups.append(group)
    return [groups[int(i)] for i in generator.permutation(len(groups))]


def describe_validation(result: Mapping[str, object]) -> str:
    """One line for people: step, loss, agreement and tau."""
    line = (
        f"step {result['step']}: validation loss {result['validation_loss']:.3f}, "
        f"agreement {result['validation_agreement']}"
    )
    if "validation_tau" not in result:
        return line
    return (
        f"{line}, tau {result['validation_tau']:.2f} ({result['validation_rounds']} rounds of "
        f"{result['validation_prompts']} prompts, {result['validation_s']:.1f} s)"
    )


def _padded(states: Sequence[Tensor], device: torch.device) -> Tensor:
    moved = [one.to(device, torch.float32) for one in states]
    return pad_sequence(moved, batch_first=True)  # [B, T, W]


def _num_labels(example: EncodedRecord) -> int:
    return int((example.loss_weights[2:] > 0).sum())


def _label_weight(example: EncodedRecord) -> float:
    return float(example.loss_weights[2:].sum())


def _shares(agreed: Sequence[Sequence[int]], labels: int) -> list[float]:
    return [round(sum(column) / max(1, labels), 3) for column in zip(*agreed, strict=True)]
