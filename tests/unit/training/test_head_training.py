"""Training a head: what each unrolled pass sees, falling loss, resuming, the file format."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.training.models import tiny_head, tiny_target

from arborist.draft.checkpoint import load_head, save_head
from arborist.draft.head import EagleHead
from arborist.training.head_command import example_of_output
from arborist.training.head_loss import HeadLoss
from arborist.training.head_trainer import HeadRun, HeadTrainer, plan_groups
from arborist.training.own_outputs import OwnOutput
from arborist.training.records import EncodedRecord
from arborist.training.target_model import make_optimizer
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


def trainer(folder: Path, num_steps: int = 6) -> HeadTrainer:
    """A run on a tiny target."""
    target = tiny_target()
    head = tiny_head(target)
    run = HeadRun(
        num_steps=num_steps,
        tokens_per_pass=48,
        passes_per_step=2,
        warmup_steps=1,
        validate_every=100,
        save_every_s=1e9,
    )
    made = examples()
    optimizer = make_optimizer(head, 1e-2, 1e-2)
    loss = HeadLoss(num_passes=3, noise=0.0)
    return HeadTrainer(head, target, optimizer, made[2:], made[:2], loss, run, folder)


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
    """Stopping half-way and going on gives the same head."""
    unbroken = trainer(tmp_path / "a")
    unbroken.train()
    first = trainer(tmp_path / "b")
    first.train_step()
    first.train_step()
    first.save()
    second = trainer(tmp_path / "b")
    assert second.step == 2
    second.train()
    for name, value in unbroken.head.state_dict().items():
        assert torch.allclose(value, second.head.state_dict()[name], atol=2e-3), name


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
    example = example_of_output(OwnOutput([0, 5, 6], [7, 8, 1], "x"), 16)
    assert example.token_ids.tolist() == [0, 5, 6, 7, 8, 1]
    assert example.loss_weights.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]


def test_second_layer_is_refused() -> None:
    """Unrolling is for heads of one layer, and says so."""
    with pytest.raises(ValueError, match="one layer"):
        UnrolledAttention(1, 2).attend(1, *(torch.zeros(2, 4, 8) for _ in range(3)))
