"""The head against an independent forward written out row by row."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from tests.unit.draft.conftest import HIDDEN, random_head, tiny_config
from tests.unit.draft.naive import NaiveHead
from torch import Tensor
from torch.nn import functional as F

from arborist.draft.head import EagleHead, HeadConfig

OFFICIAL_NAMES = {
    "fc.weight",
    "fc.bias",
    "layers.0.mlp.down_proj.weight",
    "layers.0.mlp.gate_proj.weight",
    "layers.0.mlp.up_proj.weight",
    "layers.0.post_attention_layernorm.weight",
    "layers.0.self_attn.k_proj.weight",
    "layers.0.self_attn.o_proj.weight",
    "layers.0.self_attn.q_proj.weight",
    "layers.0.self_attn.v_proj.weight",
}


def causal(layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attends inside one sequence, as training does."""
    output = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        is_causal=True,
        enable_gqa=True,
    )
    return output[0].transpose(0, 1).flatten(1)


CONFIGS = {
    "published": tiny_config(),
    "no biases": tiny_config(bias=False),
    "qkv biases": tiny_config(qkv_bias=True),
    "two layers": tiny_config(num_layers=2),
    "one KV head per head": tiny_config(num_key_value_heads=4),
    "own head width": tiny_config(head_dim=12),
    "biased output projection": tiny_config(o_bias=True),
    "linear rope": tiny_config(rope_linear_factor=4.0, rope_theta=500.0),
}


@pytest.mark.parametrize("prepared", [False, True], ids=["training", "inference"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_forward_equals_the_naive_head(config: HeadConfig, prepared: bool) -> None:
    """Every configuration gives what the plain formulas give, before and after packing."""
    head = random_head(config)
    naive = NaiveHead(config, {name: value.clone() for name, value in head.state_dict().items()})
    if prepared:
        head.prepare_for_inference()
    generator = torch.Generator().manual_seed(3)
    embeddings, features = torch.randn(2, 7, HIDDEN, generator=generator)
    positions = torch.arange(5, 12)
    with torch.inference_mode():
        ours = head(embeddings, features, positions, causal)
    theirs = naive.run(
        list(embeddings.double().numpy()), list(features.double().numpy()), positions.tolist()
    )
    expected = torch.from_numpy(np.array(theirs))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5)


def test_state_dict_has_the_official_names() -> None:
    """Layer 0 has no input norm, there is no final norm and no rotary tensor."""
    assert set(EagleHead(tiny_config()).state_dict()) == OFFICIAL_NAMES
    two = set(EagleHead(tiny_config(num_layers=2)).state_dict())
    assert "layers.0.input_layernorm.weight" not in two
    assert "layers.1.input_layernorm.weight" in two


def test_preparing_changes_no_value() -> None:
    """The state dict after packing is the one before it."""
    head = random_head(tiny_config(qkv_bias=True))
    before = {name: value.clone() for name, value in head.state_dict().items()}
    head.prepare_for_inference()
    after = head.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_preparing_keeps_one_copy_of_the_projections() -> None:
    """Query, key and value weights are rows of the one matrix that is multiplied with."""
    head = random_head(tiny_config(head_dim=20))
    head.prepare_for_inference()
    state = head.state_dict()
    weights = [state[f"layers.0.self_attn.{name}_proj.weight"] for name in "qkv"]
    shape = (sum(len(weight) for weight in weights), HIDDEN)
    joined = [
        found
        for found in gc.get_objects()
        if type(found) is Tensor and found.shape == shape and found.device.type == "cpu"
    ]
    assert {found.data_ptr() for found in joined} == {weights[0].data_ptr()}
    assert torch.equal(joined[0], torch.cat(weights))


def test_gradients_reach_every_weight() -> None:
    """Training moves all of the head."""
    head = random_head(tiny_config(qkv_bias=True))
    embeddings, features = torch.randn(2, 5, HIDDEN)
    head(embeddings, features, torch.arange(5), causal).square().mean().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if "k_proj.bias" not in name:  # A key bias shifts all scores of a row at first order.
            assert parameter.grad.abs().sum() > 0, name


def test_reserve_covers_positions_beyond_the_trained_ones() -> None:
    """A grown table has the same rows where it overlaps and finite ones beyond."""
    rotary = EagleHead(tiny_config()).rotary
    before = rotary.table.clone()
    rotary.reserve(200)
    assert rotary.num_positions == 200
    torch.testing.assert_close(rotary.table[: before.shape[0]], before)
    assert rotary(torch.tensor([199])).isfinite().all()
    rotary.reserve(10)
    assert rotary.num_positions == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_layers", 0), ("num_key_value_heads", 3), ("head_dim", 7), ("hidden_act", "tanh")],
)
def test_impossible_configs_are_refused_by_name(field: str, value: object) -> None:
    """The message names the field and its value."""
    with pytest.raises(ValueError, match=rf"{value}"):
        tiny_config(**{field: value})
