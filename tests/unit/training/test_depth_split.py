"""A deeper start: layers cut into thin ones keep what a cut can keep."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from tests.unit.training.models import VOCAB_SIZE, tiny_target
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from arborist.cli import train
from arborist.common.default_pair import default_pair_directory
from arborist.training import target_command
from arborist.training.depth_split import split_depth
from arborist.training.target_command import TargetJob, run_target_job
from arborist.training.target_model import warm_target

HEADS, NEURONS = 4, 48  # of tiny_target, whose four query heads share two KV heads
CALIBRATION = torch.arange(2 * 12).reshape(2, 12) % VOCAB_SIZE


def logits(model: LlamaForCausalLM) -> Tensor:
    """What a model says to a few tokens, (1, 9, vocabulary)."""
    with torch.no_grad():
        return model(torch.tensor([[0, 5, 9, 33, 7, 60, 2, 11, 1]])).logits


@torch.no_grad()
def keep_heads(model: LlamaForCausalLM, heads: range) -> None:
    """Lets these query heads alone add to the residual stream."""
    for layer in model.model.layers:
        width = layer.self_attn.head_dim
        columns = layer.self_attn.o_proj.weight.view(-1, HEADS, width)
        for head in set(range(HEADS)) - set(heads):
            columns[:, head] = 0


@torch.no_grad()
def keep_neurons(model: LlamaForCausalLM, neurons: list[int]) -> None:
    """Lets these neurons alone add to the residual stream."""
    for layer in model.model.layers:
        others = [one for one in range(NEURONS) if one not in neurons]
        layer.mlp.down_proj.weight[:, others] = 0


def test_one_part_of_everything_is_the_same_model() -> None:
    """With one part and all neurons the logits stay, and so does the model given."""
    model = tiny_target()
    before = logits(model)
    split = split_depth(model, 1, NEURONS, CALIBRATION)

    assert torch.allclose(logits(split), before, atol=1e-5)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    ("parts", "part"), [(2, 0), (2, 1), (4, 0), (4, 1), (4, 2), (4, 3)], ids=str
)
def test_each_part_adds_what_its_heads_and_neurons_added(parts: int, part: int) -> None:
    """Where one run of heads and the strongest neurons are all there is, the logits stay.

    Thin layers see what those before them added, so that more parts at work say almost the same.
    """
    model = tiny_target()
    count = HEADS // parts
    keep_heads(model, range(part * count, (part + 1) * count))
    keep_neurons(model, [3, 17, 40])
    split = split_depth(model, parts, NEURONS // parts, CALIBRATION)

    assert split.config.num_hidden_layers == parts * model.config.num_hidden_layers
    assert torch.allclose(logits(split), logits(model), atol=1e-5)


def test_no_head_and_no_neuron_is_lost_or_doubled() -> None:
    """Together the parts of a layer hold each of its query heads and neurons once."""
    model = tiny_target()
    split = split_depth(model, 2, NEURONS // 2, CALIBRATION)
    for index, layer in enumerate(model.model.layers):
        thin = split.model.layers[2 * index : 2 * index + 2]
        query = torch.cat([one.self_attn.q_proj.weight for one in thin])
        output = torch.cat([one.self_attn.o_proj.weight for one in thin], dim=1)
        up = torch.cat([one.mlp.up_proj.weight for one in thin])

        assert torch.equal(query, layer.self_attn.q_proj.weight)
        assert torch.equal(output, layer.self_attn.o_proj.weight)
        assert sorted(up.tolist()) == sorted(layer.mlp.up_proj.weight.tolist())


def test_the_weakest_neurons_are_left_out() -> None:
    """Fewer neurons than there are change nothing while those left out add nothing."""
    model = tiny_target()
    keep_heads(model, range(2))
    keep_neurons(model, [0, 8, 31, 47])
    split = split_depth(model, 2, 5, CALIBRATION)

    assert split.config.intermediate_size == 5
    assert torch.allclose(logits(split), logits(model), atol=1e-5)


def test_an_output_matrix_of_its_own_is_kept() -> None:
    """A target whose LM head is not its embedding keeps both."""
    model = tiny_target()
    model.config.tie_word_embeddings = False
    torch.manual_seed(3)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCAB_SIZE, model.config.hidden_size))
    split = split_depth(model, 1, NEURONS, CALIBRATION)

    assert torch.equal(split.lm_head.weight, model.lm_head.weight)
    assert torch.equal(split.model.embed_tokens.weight, model.model.embed_tokens.weight)


def test_a_split_model_is_saved_and_loaded_like_any_other(tmp_path: Path) -> None:
    """The folder tells the width of a head, which hidden size and heads no longer do."""
    split = split_depth(tiny_target(), 2, NEURONS // 2, CALIBRATION)
    split.save_pretrained(tmp_path)

    assert torch.allclose(logits(warm_target(tmp_path)), logits(split), atol=1e-6)


@pytest.mark.parametrize(
    ("parts", "neurons", "message"),
    [
        (3, 16, "split-layers 3: must divide the 4 attention heads"),
        (0, 16, "split-layers 0: must divide the 4 attention heads"),
        (2, 25, r"split-intermediate 25: must be in \[1, 24\]"),
        (2, 0, r"split-intermediate 0: must be in \[1, 24\]"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(parts: int, neurons: int, message: str) -> None:
    """The message names the option, its value and its limit."""
    with pytest.raises(ValueError, match=message):
        split_depth(tiny_target(), parts, neurons, CALIBRATION)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with one small file to train on and one to validate on."""
    for part in ("train", "val"):
        folder = tmp_path / "data" / part
        folder.mkdir(parents=True)
        line = json.dumps({"text": "all the leaves of one tree hang from its root"})
        (folder / "text.jsonl").write_text(f"{line}\n" * 3)
    return tmp_path / "data"


@pytest.fixture
def init(tmp_path: Path) -> Path:
    """A tiny target of four heads with a tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(default_pair_directory() / "target")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "init")
    tokenizer.save_pretrained(tmp_path / "init")
    return tmp_path / "init"


@pytest.mark.parametrize(("given", "expected"), [(None, 10), (6, 6)])
def test_train_target_starts_from_a_split_model(
    data: Path, init: Path, tmp_path: Path, given: int | None, expected: int
) -> None:
    """`--split-layers` and `--split-intermediate` shape the target; unset leaves no neuron out."""
    job = TargetJob(
        data=data,
        out=tmp_path / "run",
        mix={"text": 1.0},
        num_steps=1,
        init=init,
        split_layers=2,
        split_intermediate=given,
        lengths=((16, 1.0),),
        tokens_per_step=32,
        tokens_per_pass=32,
        num_workers=1,
    )
    run_target_job(job)
    trained = warm_target(tmp_path / "run/export").config

    assert (trained.num_hidden_layers, trained.num_attention_heads) == (4, 2)
    assert (trained.head_dim, trained.intermediate_size) == (8, expected)


@pytest.mark.parametrize(
    "option", [{"keep_layers": [0]}, {"split_layers": 2}, {"split_intermediate": 6}]
)
def test_shaping_needs_something_to_shape(
    data: Path, init: Path, tmp_path: Path, option: dict[str, Any]
) -> None:
    """Without a warm start nothing could be kept or cut, so the option is refused."""
    job = TargetJob(data, tmp_path / "run", {"text": 1.0}, 1, tokenizer=init, **option)

    with pytest.raises(ValueError, match="shape --init: give it"):
        run_target_job(job)


def test_the_options_of_a_split_reach_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command passes both on."""
    jobs: list[TargetJob] = []
    monkeypatch.setattr(target_command, "run_target_job", jobs.append)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    app = typer.Typer()
    train.register(app)
    command = "train-target d --out o --mix a=1 --steps 1 --init m"
    asked = [command, f"{command} --split-layers 2 --split-intermediate 7"]
    for one in asked:
        assert CliRunner().invoke(app, one.split()).exit_code == 0

    assert [(one.split_layers, one.split_intermediate) for one in jobs] == [(1, None), (2, 7)]
