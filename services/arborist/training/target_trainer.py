"""Training loop of the target."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import LlamaForCausalLM

from arborist.training.evaluation import bits_per_byte_by_file
from arborist.training.mixture import Batch, Mixture
from arborist.training.muon import Muon
from arborist.training.records import Encoder, Record
from arborist.training.replicas import Replicas
from arborist.training.run_state import load_run_state, save_run_state
from arborist.training.schedule import Schedule


@dataclass(frozen=True)
class TargetRun:
    """Settings of a run.

    ``lengths`` maps sequence length to the share of steps that use it; every step sees
    ``tokens_per_step`` tokens, cut into rows of its length.
    """

    num_steps: int
    tokens_per_step: int = 8192
    tokens_per_pass: int = 1024  # tokens of one forward/backward; the rest accumulates
    lengths: tuple[tuple[int, float], ...] = ((512, 1.0),)
    warmup_steps: int = 20
    decay_share: float = 0.5
    clip_norm: float = 1.0
    save_every_s: float = 180.0
    validate_every: int = 100
    validation_records: int = 12
    seed: int = 0
    dtype: str = "fp32"
    device: str = "cpu"


def weighted_loss(hidden: torch.Tensor, lm_head: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Sum of weighted next-token losses in nats; logits are made only where a weight is not 0.

    A label of weight w < 0 adds |w| times its unlikelihood -log(1 - p): its probability is to fall
    (Welleck et al., arXiv 1908.04319, eq. 4).

    Args:
        hidden: [B, T, H], after the final norm.
        lm_head: [H] to [V].
        batch: labels are its tokens one to the right.
    """
    weights = batch.loss_weights[:, 1:].reshape(-1)
    kept = weights.nonzero()[:, 0]  # [N]
    labels = batch.token_ids[:, 1:].reshape(-1)[kept]
    rows = hidden[:, :-1].reshape(-1, hidden.shape[-1])[kept]  # [N, H]
    losses = torch.nn.functional.cross_entropy(lm_head(rows).float(), labels, reduction="none")
    unlikely = -torch.log1p(-torch.exp(-losses).clamp(max=1 - 1e-5))
    return (torch.where(weights[kept] < 0, unlikely, losses) * weights[kept].abs()).sum()


class TargetTrainer:
    """Trains a causal LM on a mixture; stops and resumes at any step."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        optimizer: Muon,
        mixture: Mixture,
        validation: Mapping[str, Sequence[Record]],
        encoder: Encoder,
        run: TargetRun,
        folder: Path,
        replicas: Replicas | None = None,
    ) -> None:
        """Take a model, resuming the run in the folder if there is one.

        Args:
        model: in fp32, on ``run.device``.
        optimizer: of the model.
        mixture: training data.
        validation: records by file.
        encoder: tokenizer.
        run: settings.
        folder: state and log go there; a state already there is resumed.
        replicas: of the model, when several threads share the work.
        """
        self.model = model
        self._replicas = replicas or Replicas(model, 1)
        self._optimizer = optimizer
        self._mixture = mixture
        self._validation = validation
        self._encoder = encoder
        self._run = run
        self._folder = folder
        self._schedule = Schedule(run.num_steps, run.warmup_steps, run.decay_share)
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        self.step = 0
        self.num_tokens = 0
        folder.mkdir(parents=True, exist_ok=True)
        progress = load_run_state(folder, model, optimizer)
        if progress is not None:
            self.step = progress["step"]
            self.num_tokens = progress["num_tokens"]

    def train(self, on_step: Callable[[int, float], None] | None = None) -> None:
        """Run to the last step, saving now and then and at the end (also when interrupted)."""
        self.model.train()
        saved_at = time.monotonic()
        bar = tqdm(total=self._run.num_steps, initial=self.step, unit="step", mininterval=5)
        try:
            while self.step < self._run.num_steps:
                loss = self.train_step()
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", tokens=f"{self.num_tokens / 1e6:.2f}M")
                if on_step is not None:
                    on_step(self.step, loss)
                if self.step % 10 == 0:
                    self._log({"step": self.step, "loss": loss, "num_tokens": self.num_tokens})
                if self.step % self._run.validate_every == 0:
                    self.validate()
                if time.monotonic() - saved_at > self._run.save_every_s:
                    self.save()
                    saved_at = time.monotonic()
        finally:
            bar.close()
            self.save()

    def train_step(self) -> float:
        """One update; returns its loss in nats per weighted token."""
        factor = self._schedule.factor(self.step)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        batch = self._batch()
        total_weight = batch.loss_weights[:, 1:].abs().sum().clamp(min=1)
        rows = max(1, self._run.tokens_per_pass // batch.token_ids.shape[1])
        parts = [
            Batch(
                batch.token_ids[start : start + rows].to(self._run.device),
                batch.loss_weights[start : start + rows].to(self._run.device),
            )
            for start in range(0, batch.token_ids.shape[0], rows)
        ]
        loss_sum = self._replicas.backward(
            lambda model, part: self._loss(model, part) / total_weight, parts
        )
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._run.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.num_tokens += batch.token_ids.numel()
        return loss_sum

    def validate(self) -> dict[str, float]:
        """Bits per byte by file, also written to the log."""
        result = bits_per_byte_by_file(
            self.model,
            self._validation,
            self._encoder,
            self._run.validation_records,
            self._run.device,
        )
        self._log({"step": self.step, "bits_per_byte": result})
        return result

    def save(self) -> None:
        """Write the state of the run."""
        progress = {"step": self.step, "num_tokens": self.num_tokens, "run": asdict(self._run)}
        save_run_state(self._folder, self.model, self._optimizer, progress)

    def _loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        device_type = torch.device(self._run.device).type
        with torch.autocast(device_type, torch.bfloat16, enabled=self._run.dtype == "bf16"):
            hidden = model.get_submodule("model")(
                input_ids=batch.token_ids, use_cache=False
            ).last_hidden_state  # [B, T, H]
            return weighted_loss(hidden, model.get_submodule("lm_head"), batch)

    def _batch(self) -> Batch:
        lengths = [length for length, _ in self._run.lengths]
        shares = np.array([share for _, share in self._run.lengths], dtype=np.float64)
        generator = np.random.default_rng((self._run.seed, self.step, 7919))
        length = int(generator.choice(lengths, p=shares / shares.sum()))
        return self._mixture.batch(self.step, max(1, self._run.tokens_per_step // length), length)

    def _log(self, entry: dict[str, object]) -> None:
        with (self._folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
