"""Training a head: what each unrolled pass sees, falling loss, resuming, the file format."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.training.models import TinyStates, tiny_head, tiny_target

from arborist.core.errors import InvalidArgumentError
from arborist.draft.checkpoint import load_head, save_head
from arborist.draft.head import EagleHead
from arborist.training.head_examples import example_of_output
from arborist.training.head_loss import HeadLoss
from arborist.training.head_objective import Eagle2Objective
from arborist.training.head_trainer import HeadRun, HeadTrainer, plan_groups
from arborist.training.muon import Muon
from arborist.training.own_outputs import OwnOutput
from arborist.training.records import EncodedRecord
from arborist.training.target_model import make_optimizer
from arborist.training.trained_head import TrainedHead
from arborist.training.unroll import UnrolledAttention


def examples(count: int = 12) -> list[EncodedRecord]:
    """Short sequences of different length."""
    generator = np.random.default_rng(0)
    made = []
    for number in range(count):
        ids = generator.integers(4, 64, size=10 + number % 5)
        ids[0] = 0
        made.append(EncodedRecord(ids.astype(np.int64), np.ones(len(ids), dtype=np.float32)))
    return made


def trainer(
    folder: Path,
    num_steps: int = 6,
    *,
    noise: float = 0.0,
    tokens_per_pass: int = 48,
    passes_per_step: int = 2,
    recipe: dict[str, object] | None = None,
) -> HeadTrainer:
    """A run on a tiny target."""
    target = tiny_target()
    model = TrainedHead(tiny_head(target))
    run = HeadRun(
        num_steps=num_steps,
        tokens_per_pass=tokens_per_pass,
        passes_per_step=passes_per_step,
        warmup_steps=1,
        log_every=1,
        validate_every=100,
        save_every_s=1e9,
    )
    made = examples()
    optimizer = make_optimizer(model, 1e-2, 1e-2)
    objective = Eagle2Objective(HeadLoss(num_passes=3, noise=noise))
    return HeadTrainer(
        model,
        TinyStates(target),
        optimizer,
        made[2:],
        made[:2],
        objective,
        run,
        folder,
        recipe=recipe,
    )


def logged(folder: Path) -> list[dict[str, object]]:
    """The entries of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def draft_level(
    head: EagleHead, pairs: torch.Tensor, features: torch.Tensor, position: int, level: int
) -> torch.Tensor:
    """What a draft gets at one position as it really drafts: a chain of ``level`` steps.

    Keys of all pairs before the chain come from true features, those inside it from its own.
    """
    start = position - level + 1
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []

    def attend(
        layer_index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        keys.append(key)
        values.append(value)
        groups = query.shape[1] // key.shape[1]
        all_keys = torch.cat(keys).transpose(0, 1).repeat_interleave(groups, 0)
        all_values = torch.cat(values).transpose(0, 1).repeat_interleave(groups, 0)
        rows, columns = query.shape[0], all_keys.shape[1]
        allowed = torch.ones(rows, columns).tril(columns - rows).bool()
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query.transpose(0, 1), all_keys, all_values, attn_mask=allowed
        )
        return mixed.transpose(0, 1).reshape(rows, -1)

    output = head(pairs[: start + 1], features[: start + 1], torch.arange(start + 1), attend)
    state = output[-1:]
    for step in range(1, level):
        place = start + step
        state = head(pairs[place : place + 1], state, torch.tensor([place]), attend)
    return state[0]


def test_unrolled_passes_equal_drafting() -> None:
    """Pass j at position t gives what a chain of j draft steps that ends at t gives."""
    target = tiny_target()
    head = tiny_head(target)
    length = 9
    torch.manual_seed(3)
    pairs, features = torch.randn(length, 32), torch.randn(length, 32)
    attention = UnrolledAttention(1, length)
    inputs = features
    with torch.no_grad():
        for level in range(1, 5):
            output = head(pairs, inputs, torch.arange(length), attention.attend)
            for position in range(level - 1, length):
                expected = draft_level(head, pairs, features, position, level)
                assert torch.allclose(output[position], expected, atol=1e-5), (level, position)
            inputs = torch.cat([features[:1], output[:-1]])


def test_loss_pairs_feature_with_the_next_token() -> None:
    """A head that copies the true next feature has the smallest loss, and no other shift has."""
    target = tiny_target()
    ids = torch.tensor([[0, 5, 9, 13, 21, 34]])
    with torch.no_grad():
        features = target.model(input_ids=ids).last_hidden_state

        class Oracle(torch.nn.Module):
            """Gives the true features, shifted."""

            def __init__(self, shift: int) -> None:
                super().__init__()
                self.shift = shift

            def forward(self, pairs: torch.Tensor, *_: object) -> torch.Tensor:
                return features[0].roll(-self.shift, 0)[: pairs.shape[0]]

        def loss_with(shift: int) -> tuple[float, list[int]]:
            weights = torch.ones(1, 6)
            table = target.model.embed_tokens.weight
            loss, agreed = HeadLoss(num_passes=1, noise=0.0)(
                Oracle(shift),
                table,
                table,
                ids,
                features,
                weights,  # type: ignore[arg-type]
            )
            return float(loss), agreed

        right, agreed = loss_with(1)
        assert agreed == [4]
        assert right < loss_with(0)[0]
        assert right < loss_with(2)[0]


def test_loss_falls(tmp_path: Path) -> None:
    """A few steps lower the loss on what was learnt."""
    run = trainer(tmp_path, 40)
    first = run.train_step()["loss"]
    for _ in range(38):
        run.train_step()
    last = run.train_step()["loss"]
    assert isinstance(first, float)
    assert isinstance(last, float)
    # Most of a soft cross-entropy is the target's own entropy, which no head can take away.
    assert last < first - 0.5


def test_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    """Stopping half-way and going on gives the same losses and the same head, noise included."""
    unbroken = trainer(tmp_path / "a", noise=0.1)
    unbroken.train()
    first = trainer(tmp_path / "b", noise=0.1)
    for _ in range(4):
        first.train_step()
    first.save()
    second = trainer(tmp_path / "b", noise=0.1)
    assert second.step == 4
    second.train()
    assert logged(tmp_path / "b") == logged(tmp_path / "a")[4:]
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_steps_after_the_last_state_are_logged_once(tmp_path: Path) -> None:
    """What a killed run logged beyond its last state is dropped, half a line included."""
    first = trainer(tmp_path, 2)
    first.train()
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "loss": 0.0}\n{"step": 4, "lo')
    trainer(tmp_path, 4).train()
    assert [entry["step"] for entry in logged(tmp_path)] == [1, 2, 3, 4]


def test_half_an_update_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of an update leaves the last whole state, and the same losses."""
    trainer(tmp_path / "a").train()
    first = trainer(tmp_path / "b")
    for _ in range(3):
        first.train_step()
    first.save()

    def interrupted(self: Muon) -> None:
        self.param_groups[0]["params"][0].data.zero_()
        raise KeyboardInterrupt

    monkeypatch.setattr(Muon, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    monkeypatch.undo()
    trainer(tmp_path / "b").train()
    assert logged(tmp_path / "b") == logged(tmp_path / "a")[3:]


def test_two_small_passes_equal_a_large_one(tmp_path: Path) -> None:
    """Gradients accumulated over passes are those of one pass over the same examples."""
    # All ten examples in one update, in one pass or in passes of two of them.
    num_passes = len(plan_groups([len(one) for one in examples()[2:]], 28, (0, 0)))
    assert num_passes == 5
    whole = trainer(tmp_path / "a", tokens_per_pass=1000, passes_per_step=1)
    parts = trainer(tmp_path / "b", tokens_per_pass=28, passes_per_step=num_passes)
    found = [whole.train_step(), parts.train_step()]
    assert whole.num_tokens == parts.num_tokens
    assert found[0]["agreement"] == found[1]["agreement"]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-5)
    for name, value in whole.model.state_dict().items():
        assert torch.allclose(value, parts.model.state_dict()[name], atol=1e-4), name


def test_another_recipe_is_no_resumption(tmp_path: Path) -> None:
    """A folder with a run of other settings is refused in one line that names the setting."""
    trainer(tmp_path, 1, recipe={"algorithm": "eagle2", "seed": 1}).save()
    with pytest.raises(InvalidArgumentError, match="seed = 2: must be 1, as the run in"):
        trainer(tmp_path, 1, recipe={"algorithm": "eagle2", "seed": 2})


def test_head_file_round_trips(tmp_path: Path) -> None:
    """A saved head loads again with the same weights, in bf16, with or without embeddings."""
    target = tiny_target()
    head = tiny_head(target)
    table = target.model.embed_tokens.weight
    for embedding in (None, table):
        save_head(tmp_path, head, embed_tokens=embedding)
        loaded, stored = load_head(tmp_path)
        assert (stored is None) == (embedding is None)
        for name, value in head.state_dict().items():
            assert torch.equal(value.bfloat16().float(), loaded.state_dict()[name].float()), name


def test_groups_hold_every_example_once_and_fit() -> None:
    """Groups cover all examples, are padded to no more than a pass, and change with the epoch."""
    lengths = [3 + number % 7 for number in range(100)]
    groups = plan_groups(lengths, 32, (0, 0))
    assert sorted(index for group in groups for index in group) == list(range(100))
    assert all(len(group) * max(lengths[i] for i in group) <= 32 for group in groups)
    assert groups != plan_groups(lengths, 32, (0, 1))


def test_only_the_output_is_learnt() -> None:
    """Labels are the output's tokens but its first, which no draft has to guess."""
    example = example_of_output(OwnOutput([0, 5, 6], [7, 8, 1], "x"))
    assert example.encoded.token_ids.tolist() == [0, 5, 6, 7, 8, 1]
    assert example.encoded.loss_weights.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    assert example.prompt_ids == [0, 5, 6]


def test_second_layer_is_refused() -> None:
    """Unrolling is for heads of one layer, and says so."""
    with pytest.raises(ValueError, match="one layer"):
        UnrolledAttention(1, 2).attend(1, *(torch.zeros(2, 4, 8) for _ in range(3)))
