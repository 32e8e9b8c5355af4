"""Training a target: the loss falls, a stop changes nothing, exports load."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.unit.training.models import LetterEncoder, tiny_target
from transformers import LlamaForCausalLM

from arborist.training.evaluation import bits_per_byte
from arborist.training.mixture import Batch, Mixture
from arborist.training.muon import orthogonalise
from arborist.training.records import Record
from arborist.training.replicas import Replicas
from arborist.training.schedule import Schedule
from arborist.training.target_model import freeze_bottom, make_optimizer, warm_target
from arborist.training.target_trainer import TargetRun, TargetTrainer, weighted_loss

ENCODER = LetterEncoder()
RECORDS = {"text": [Record("abcabcabc"), Record("what", "nothing at all")]}
RUN = TargetRun(
    num_steps=8,
    tokens_per_step=128,
    tokens_per_pass=64,
    lengths=((32, 1.0),),
    warmup_steps=1,
    validate_every=100,
    save_every_s=1e9,
)


def trainer(folder: Path, run: TargetRun = RUN, workers: int = 1) -> TargetTrainer:
    """A run over a tiny mixture."""
    model = tiny_target()
    replicas = Replicas(model, workers)
    optimizer = make_optimizer(model, 2e-2, 1e-2, replicas=replicas)
    mixture = Mixture(RECORDS, {"text": 1.0}, ENCODER)
    return TargetTrainer(model, optimizer, mixture, RECORDS, ENCODER, run, folder, replicas)


def weights_of(run: TargetTrainer) -> torch.Tensor:
    """All weights in a row."""
    return torch.cat([value.flatten() for value in run.model.state_dict().values()])


def test_loss_falls(tmp_path: Path) -> None:
    """A few steps on a tiny corpus lower the loss and the bits per byte."""
    losses: list[float] = []
    run = trainer(tmp_path, replace(RUN, num_steps=25))
    before = bits_per_byte(run.model, RECORDS["text"], ENCODER)
    run.train(lambda step, loss: losses.append(loss))
    assert losses[-1] < 0.6 * losses[0]
    assert bits_per_byte(run.model, RECORDS["text"], ENCODER) < before


def test_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    """Stopping half-way and going on in a new process gives the same weights."""
    unbroken = trainer(tmp_path / "a")
    unbroken.train()
    first = trainer(tmp_path / "b")
    for _ in range(3):
        first.train_step()
    first.save()
    second = trainer(tmp_path / "b")
    assert second.step == 3
    second.train()
    assert second.num_tokens == unbroken.num_tokens == 8 * 128
    assert torch.equal(weights_of(second), weights_of(unbroken))


def test_workers_give_the_gradient_of_one(tmp_path: Path) -> None:
    """Two threads that share a batch make the same update, up to the order of a sum."""
    one, two = trainer(tmp_path / "a"), trainer(tmp_path / "b", workers=2)
    assert one.train_step() == pytest.approx(two.train_step(), abs=1e-4)
    assert torch.allclose(weights_of(one), weights_of(two), atol=1e-4)


def test_loss_counts_weighted_labels_only() -> None:
    """Tokens of weight 0 add nothing; the others add their cross-entropy times the weight."""
    torch.manual_seed(0)
    hidden, matrix = torch.randn(1, 4, 8), torch.nn.Linear(8, 10, bias=False)
    token_ids = torch.tensor([[1, 2, 3, 4]])
    weights = torch.tensor([[0.0, 0.0, 2.0, 0.0]])
    loss = weighted_loss(hidden, matrix, Batch(token_ids, weights))
    expected = -2.0 * matrix(hidden)[0, 1].log_softmax(-1)[3]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_negative_weight_is_unlikelihood() -> None:
    """A label of negative weight costs -log(1 - p): the less likely, the cheaper."""
    torch.manual_seed(0)
    hidden, matrix = torch.randn(1, 3, 8), torch.nn.Linear(8, 10, bias=False)
    weights = torch.tensor([[0.0, 0.0, -1.0]])
    loss = weighted_loss(hidden, matrix, Batch(torch.tensor([[1, 2, 3]]), weights))
    probability = matrix(hidden)[0, 1].softmax(-1)[3]
    assert loss.item() == pytest.approx(-torch.log(1 - probability).item(), rel=1e-4)


def test_frozen_layers_stay(tmp_path: Path) -> None:
    """Layers under the cut do not move, those above it do."""
    run = trainer(tmp_path)
    freeze_bottom(run.model, 1)
    before = [layer.mlp.up_proj.weight.clone() for layer in run.model.model.layers]
    run.train_step()
    after = [layer.mlp.up_proj.weight for layer in run.model.model.layers]
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_warm_start_keeps_the_layers_named(tmp_path: Path) -> None:
    """A warm start with layers left out holds the others' weights and still runs."""
    model = tiny_target(num_layers=4)
    model.save_pretrained(tmp_path)
    smaller = warm_target(tmp_path, [0, 3])
    assert smaller.config.num_hidden_layers == 2
    kept = smaller.model.layers[1].mlp.up_proj.weight
    assert torch.equal(kept, model.model.layers[3].mlp.up_proj.weight)
    assert isinstance(smaller, LlamaForCausalLM)
    assert smaller.generate(torch.tensor([[0, 5]]), max_new_tokens=2).shape[1] >= 3
    for wrong in ([0, 4], [1, 0]):
        with pytest.raises(ValueError, match="keep-layers"):
            warm_target(tmp_path, wrong)


def test_muon_update_is_nearly_orthogonal() -> None:
    """Singular values of the iterated matrix end near 1, whatever they were."""
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(12, 30) * 5))
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.4


def test_schedule_rises_holds_and_falls() -> None:
    """The factor warms up, stays at 1 and ends just above 0."""
    schedule = Schedule(num_steps=100, warmup_steps=10, decay_share=0.5)
    assert schedule.factor(0) == pytest.approx(0.1)
    assert schedule.factor(30) == 1.0
    assert schedule.factor(75) == pytest.approx(0.5)
    assert 0 < schedule.factor(99) < 0.05
