"""Training loop of an EAGLE head."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaForCausalLM

from arborist.draft.head import EagleHead
from arborist.training.head_loss import HeadLoss
from arborist.training.muon import Muon
from arborist.training.records import EncodedRecord
from arborist.training.replicas import Replicas
from arborist.training.run_state import load_run_state, save_run_state
from arborist.training.schedule import Schedule


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
    validate_every: int = 100
    cache_features: bool = True
    seed: int = 0
    device: str = "cpu"
    dtype: str = "fp32"


class HeadTrainer:
    """Trains a head on sequences of its target; stops and resumes at any step."""

    def __init__(
        self,
        head: EagleHead,
        target: LlamaForCausalLM,
        optimizer: Muon,
        examples: Sequence[EncodedRecord],
        validation: Sequence[EncodedRecord],
        loss: HeadLoss,
        run: HeadRun,
        folder: Path,
        replicas: Replicas | None = None,
    ) -> None:
        """Take a head, resuming the run in the folder if there is one.

        Args:
        head: in fp32, one layer, on ``run.device``.
        target: frozen, on ``run.device``.
        optimizer: of the head.
        examples: sequences with the weight of each token as a label.
        validation: the same, never trained on.
        loss: loss and number of passes.
        run: settings.
        folder: state and log go there; a state already there is resumed.
        replicas: of the head, when several threads share the work.
        """
        self.head = head
        self._target = target.eval().requires_grad_(False)
        self._optimizer = optimizer
        self._examples = examples
        self._validation = validation
        self._loss = loss
        self._run = run
        self._folder = folder
        self._replicas = replicas or Replicas(head, 1)
        self._schedule = Schedule(run.num_steps, run.warmup_steps, run.decay_share)
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        self._features: dict[int, Tensor] = {}
        self._plans: dict[int, list[list[int]]] = {}
        self.step = 0
        self.num_tokens = 0
        folder.mkdir(parents=True, exist_ok=True)
        progress = load_run_state(folder, head, optimizer)
        if progress is not None:
            self.step = progress["step"]
            self.num_tokens = progress["num_tokens"]

    def train(self) -> None:
        """Run to the last step, saving now and then and at the end (also when interrupted)."""
        self.head.train()
        saved_at = time.monotonic()
        bar = tqdm(total=self._run.num_steps, initial=self.step, unit="step", mininterval=5)
        try:
            while self.step < self._run.num_steps:
                entry = self.train_step()
                bar.update()
                bar.set_postfix(loss=f"{entry['loss']:.3f}", agree=entry["agreement"])
                if self.step % 10 == 0:
                    self._log({"step": self.step, "num_tokens": self.num_tokens, **entry})
                if self.step % self._run.validate_every == 0:
                    self.validate()
                if time.monotonic() - saved_at > self._run.save_every_s:
                    self.save()
                    saved_at = time.monotonic()
        finally:
            bar.close()
            self.save()

    def train_step(self) -> dict[str, object]:
        """One update; returns loss per weighted token and agreement with the target by pass."""
        factor = self._schedule.factor(self.step)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        groups = [
            self._group(self.step * self._run.passes_per_step + number)
            for number in range(self._run.passes_per_step)
        ]
        weight = sum(_label_weight(self._examples[index]) for group in groups for index in group)
        agreed: list[list[int]] = []

        def loss_of(head: torch.nn.Module, group: list[int]) -> Tensor:
            total, counts = self._pass(head, [self._examples[i] for i in group], group)
            agreed.append(counts)
            return total / weight

        loss = self._replicas.backward(loss_of, groups)
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), self._run.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.num_tokens += sum(len(self._examples[i]) for group in groups for i in group)
        labels = sum(_num_labels(self._examples[i]) for group in groups for i in group)
        return {"loss": loss, "agreement": _shares(agreed, labels)}

    @torch.no_grad()
    def validate(self) -> dict[str, object]:
        """Loss and agreement on the validation sequences, also written to the log."""
        self.head.eval()
        total, labels, weight = 0.0, 0, 0.0
        agreed = []
        for example in self._validation:
            loss, counts = self._pass(self.head, [example], None)
            total += float(loss)
            agreed.append(counts)
            labels += _num_labels(example)
            weight += _label_weight(example)
        self.head.train()
        result: dict[str, object] = {
            "step": self.step,
            "validation_loss": total / max(1.0, weight),
            "validation_agreement": _shares(agreed, labels),
        }
        self._log(result)
        return result

    def save(self) -> None:
        """Write the state of the run."""
        progress = {"step": self.step, "num_tokens": self.num_tokens, "run": asdict(self._run)}
        save_run_state(self._folder, self.head, self._optimizer, progress)

    def _pass(
        self, head: torch.nn.Module, examples: Sequence[EncodedRecord], keys: list[int] | None
    ) -> tuple[Tensor, list[int]]:
        device = self._run.device
        longest = max(map(len, examples))
        token_ids = torch.zeros((len(examples), longest), dtype=torch.int64)
        weights = torch.zeros((len(examples), longest))
        for row, example in enumerate(examples):
            token_ids[row, : len(example)] = torch.from_numpy(example.token_ids)
            weights[row, : len(example)] = torch.from_numpy(example.loss_weights)
        token_ids, weights = token_ids.to(device), weights.to(device)
        features = self._features_of(token_ids, keys)
        lm_head = self._target.lm_head.weight
        embedding = self._target.model.embed_tokens.weight
        device_type = torch.device(device).type
        with torch.autocast(device_type, torch.bfloat16, enabled=self._run.dtype == "bf16"):
            return self._loss(head, lm_head, embedding, token_ids, features, weights)  # type: ignore[arg-type]

    def _features_of(self, token_ids: Tensor, keys: list[int] | None) -> Tensor:
        """Features [B, T, H] of the target, remembered in half precision by example."""
        if keys is not None and all(key in self._features for key in keys):
            stored = [self._features[key] for key in keys]
            padded = torch.nn.utils.rnn.pad_sequence(stored, batch_first=True)
            return padded.to(token_ids.device, torch.float32)
        with torch.no_grad():
            # Padding stands on the right: causal attention keeps it out of every real row.
            features = self._target.model(input_ids=token_ids, use_cache=False).last_hidden_state
        if keys is not None and self._run.cache_features:
            for row, key in enumerate(keys):
                count = len(self._examples[key])
                self._features[key] = features[row, :count].to("cpu", torch.bfloat16)
        widened: Tensor = features.float()
        return widened

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

    def _log(self, entry: dict[str, object]) -> None:
        with (self._folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")


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


def _num_labels(example: EncodedRecord) -> int:
    return int((example.loss_weights[2:] > 0).sum())


def _label_weight(example: EncodedRecord) -> float:
    return float(example.loss_weights[2:].sum())


def _shares(agreed: Sequence[Sequence[int]], labels: int) -> list[float]:
    return [round(sum(column) / max(1, labels), 3) for column in zip(*agreed, strict=True)]
