"""Heads on disk: what is loaded, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.draft.conftest import (
    HIDDEN,
    VOCAB,
    random_head,
    random_table,
    tiny_config,
    write_target,
)

from arborist.core.errors import InvalidArgumentError, MismatchError
from arborist.draft.checkpoint import check_fit, load_head, save_head
from arborist.draft.engine import EagleDraftEngine, load_draft
from arborist.draft.rotary import Llama3Scaling
from arborist.draft.target_vocabulary import load_target_vocabulary


def add_tensors(folder: Path, added: dict[str, torch.Tensor]) -> None:
    """Adds or replaces weights of a head."""
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, **added}, folder / "model.safetensors")


def remove_tensor(folder: Path, name: str) -> None:
    """Takes a weight out of a head."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")


def change_config(folder: Path, remove: str | None = None, **changes: object) -> None:
    """Rewrites config.json of a model."""
    fields = json.loads((folder / "config.json").read_text())
    if remove is not None:
        del fields[remove]
    (folder / "config.json").write_text(json.dumps({**fields, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias": False},
        {"qkv_bias": True, "num_layers": 2},
        {"head_dim": 12, "rope_theta": 5e5, "rope_linear_factor": 2.0},
        {"rope_llama3": Llama3Scaling(8.0, 1.0, 4.0, 32), "o_bias": True, "qk_norm": True},
        {"embedding_norm": True, "input_norm": True, "output_norm": True, "norm_output": True},
    ],
)
def test_a_saved_head_loads_unchanged(tmp_path: Path, changes: dict) -> None:
    """Config, weights and the optional embedding survive the official format."""
    head = random_head(tiny_config(**changes))
    save_head(tmp_path / "with", head, embed_tokens=random_table(1), dtype=torch.float32)
    loaded, embedding = load_head(tmp_path / "with")
    assert loaded.config == head.config
    assert embedding is not None
    assert torch.equal(embedding, random_table(1))
    for name, value in head.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    save_head(tmp_path / "without", head)
    assert load_head(tmp_path / "without")[1] is None


def test_a_prepared_head_saves_like_a_fresh_one(tmp_path: Path) -> None:
    """The layout in memory does not reach the file."""
    head = random_head(tiny_config())
    save_head(tmp_path / "fresh", head, dtype=torch.float32)
    head.prepare_for_inference()
    save_head(tmp_path / "prepared", head, dtype=torch.float32)
    fresh, prepared = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("fresh", "prepared")
    )
    assert fresh == prepared


def test_half_precision_weights_are_converted(tmp_path: Path) -> None:
    """A bf16 file gives fp32 weights that are exactly its values."""
    head = random_head(tiny_config())
    save_head(tmp_path, head, dtype=torch.bfloat16)
    loaded, _ = load_head(tmp_path)
    assert loaded.fc.weight.dtype == torch.float32
    assert torch.equal(loaded.fc.weight, head.fc.weight.bfloat16().float())


def test_bias_is_decided_by_the_tensors(head_path: Path) -> None:
    """A config.json that says nothing, or the wrong thing, about the bias does not matter."""
    change_config(head_path, remove="bias")
    assert load_head(head_path)[0].config.bias
    remove_tensor(head_path, "fc.bias")
    change_config(head_path, bias=True)
    assert not load_head(head_path)[0].config.bias


def test_a_sharded_head_loads(head_path: Path) -> None:
    """An index and two files are one head."""
    whole, _ = load_head(head_path)
    tensors = load_file(head_path / "model.safetensors")
    (head_path / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[:4], "b.safetensors": names[4:]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, head_path / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (head_path / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded, embedding = load_head(head_path)
    assert embedding is not None
    for name, value in whole.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize(
    "name",
    [
        "fc.weight",
        "layers.0.self_attn.v_proj.weight",
        "layers.0.mlp.down_proj.weight",
        "layers.0.post_attention_layernorm.weight",
    ],
)
def test_a_missing_tensor_is_named(head_path: Path, name: str) -> None:
    """A head without one of its tensors is refused."""
    remove_tensor(head_path, name)
    with pytest.raises(MismatchError, match=f"{name} is missing") as caught:
        load_head(head_path)
    assert caught.value.metadata["tensor"] == name


@pytest.mark.parametrize(
    "name",
    ["layers.0.input_layernorm.weight", "norm.weight", "lm_head.weight", "layers.1.mlp.x.weight"],
)
def test_an_unknown_tensor_is_named(head_path: Path, name: str) -> None:
    """A tensor that the architecture has no place for is refused, not ignored."""
    add_tensors(head_path, {name: torch.ones(HIDDEN)})
    with pytest.raises(MismatchError, match=f"{name}.*is unknown") as caught:
        load_head(head_path)
    assert caught.value.metadata["tensor"] == name


def test_a_missing_layer_is_named(head_path: Path) -> None:
    """A config.json with more layers than the file is refused."""
    change_config(head_path, num_hidden_layers=2)
    with pytest.raises(MismatchError, match=r"layers\.1\.input_layernorm\.weight is missing"):
        load_head(head_path)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("fc.weight", torch.ones(HIDDEN, 3 * HIDDEN), r"\[32, 96\].*\[32, 64\]"),
        ("embed_tokens.weight", torch.ones(VOCAB + 1, HIDDEN), r"\[62, 32\].*\[61, 32\]"),
        ("fc.bias", torch.ones(HIDDEN, dtype=torch.int32), r"torch\.int32"),
    ],
)
def test_a_misshapen_tensor_is_named(
    head_path: Path, name: str, tensor: torch.Tensor, message: str
) -> None:
    """Shape and dtype are checked, and the message says which tensor and both shapes."""
    add_tensors(head_path, {name: tensor})
    with pytest.raises(MismatchError, match=f"{name}.*{message}"):
        load_head(head_path)


@pytest.mark.parametrize(
    ("tensors", "format_name"),
    [
        ({"layers.0.self_attn.q_proj.weight": torch.ones(32, 64)}, "speculators EAGLE-3"),
        ({"layers.0.hidden_norm.weight": torch.ones(32)}, "speculators EAGLE-3"),
        ({"model.fc.weight": torch.ones(32, 64)}, "vLLM wrapper"),
        ({"fusion_fc.weight": torch.ones(32, 64)}, "speculators EAGLE-1"),
        ({"embed_layernorm.weight": torch.ones(32)}, "HASS"),
    ],
)
def test_other_formats_are_refused_clearly(
    head_path: Path, tensors: dict[str, torch.Tensor], format_name: str
) -> None:
    """A head of a known other kind is told apart by its tensors, with what to do about it."""
    add_tensors(head_path, tensors)
    with pytest.raises(MismatchError, match=f"{format_name}.*arborist import-head"):
        load_head(head_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"midlayer.self_attn.q_proj.weight": torch.ones(32, 64)}, r"midlayer\..* is missing"),
        ({"d2t": torch.full((8,), 60)}, "d2t leads outside of the vocabulary of 61"),
        ({"t2d": torch.ones(VOCAB, dtype=torch.bool)}, "d2t is missing"),
        ({"embedding_layernorm.weight": torch.ones(31)}, r"embedding_layernorm.*\[31\]"),
    ],
)
def test_half_of_another_kind_is_refused(
    head_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    """Some tensors of a kind of head without the others are named."""
    add_tensors(head_path, tensors)
    with pytest.raises(MismatchError, match=message):
        load_head(head_path)


@pytest.mark.parametrize(
    ("remove", "changes", "message"),
    [
        ("hidden_size", {}, "has no hidden_size"),
        (None, {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope scaling = yarn"),
        (None, {"hidden_act": "tanh"}, "hidden_act = tanh"),
        (None, {"num_attention_heads": 0}, "num_attention_heads = 0"),
        (None, {"hidden_size": "wide"}, "wide"),
    ],
)
def test_a_bad_config_is_refused(
    head_path: Path, remove: str | None, changes: dict, message: str
) -> None:
    """The message names the field."""
    change_config(head_path, remove=remove, **changes)
    with pytest.raises(MismatchError, match=message):
        load_head(head_path)


def test_only_safetensors_are_read(head_path: Path) -> None:
    """A pickled checkpoint alone is no checkpoint."""
    (head_path / "model.safetensors").rename(head_path / "pytorch_model.bin")
    with pytest.raises(MismatchError, match=r"only safetensors.*arborist import-head"):
        load_head(head_path)


def test_a_damaged_file_is_refused(head_path: Path) -> None:
    """A truncated file gives one line, not a traceback."""
    whole = (head_path / "model.safetensors").read_bytes()
    (head_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MismatchError, match="cannot read"):
        load_head(head_path)


@pytest.mark.parametrize("name", ["no-such-folder", "some/where/else", "no-such/model"])
def test_a_missing_model_says_what_to_give(name: str) -> None:
    """A path that is no folder, and no hub name that can be had, is an invalid argument."""
    with pytest.raises(InvalidArgumentError, match="existing folder or a hub name"):
        load_head(name)


def test_a_head_of_another_target_is_refused(head_path: Path, tmp_path: Path) -> None:
    """Hidden size and vocabulary are compared, and the tensor that does not fit is named."""
    head, _ = load_head(head_path)
    wide = write_target(tmp_path / "wide", torch.ones(VOCAB, 2 * HIDDEN))
    with pytest.raises(MismatchError, match=r"fc\.weight.*\[32, 64\].*hidden_size 64"):
        check_fit(head, load_target_vocabulary(wide))
    large = write_target(tmp_path / "large", torch.ones(VOCAB + 3, HIDDEN))
    with pytest.raises(MismatchError, match=r"embed_tokens\.weight has 61 rows.*64"):
        check_fit(head, load_target_vocabulary(large))
    with pytest.raises(MismatchError, match=r"fc\.weight"):
        load_draft(head_path, wide, device="cpu", dtype="float32", kv_capacity_tokens=600)


def test_a_head_of_a_target_of_the_same_shape_is_refused(head_path: Path, tmp_path: Path) -> None:
    """The copy of the target's embedding tells which target it was, rounding aside."""

    def load(embedding: torch.Tensor) -> EagleDraftEngine:
        path = write_target(tmp_path / "other", embedding, random_table(2))
        return load_draft(head_path, path, device="cpu", dtype="float32", kv_capacity_tokens=600)

    load(random_table(1).half())
    with pytest.raises(MismatchError, match=r"embed_tokens\.weight is another model's embedding"):
        load(random_table(7))


def test_the_target_gives_embedding_and_lm_head(tmp_path: Path) -> None:
    """Tied and untied targets, with and without the flag, give the right two tables."""
    untied = load_target_vocabulary(
        write_target(tmp_path / "untied", random_table(1), random_table(2))
    )
    assert torch.equal(untied.embed_tokens, random_table(1))
    assert torch.equal(untied.lm_head, random_table(2))
    assert (untied.eos_token_ids, untied.context_length) == ((2, 3), 128)
    tied = load_target_vocabulary(
        write_target(tmp_path / "tied", random_table(1), tie_word_embeddings=None, eos_token_id=7)
    )
    assert tied.lm_head is tied.embed_tokens
    assert tied.eos_token_ids == (7,)
    assert tied.embedding_digest == untied.embedding_digest
    both = load_target_vocabulary(
        write_target(tmp_path / "both", random_table(1), random_table(2), tie_word_embeddings=True)
    )
    assert both.lm_head is both.embed_tokens


def test_a_nested_config_may_leave_the_vocabulary_size_out(tmp_path: Path) -> None:
    """Gemma 3 publishes a text_config without it: the embedding has as many rows as tokens."""
    folder = write_target(tmp_path / "target", random_table(1))
    path = folder / "config.json"
    text = json.loads(path.read_text())
    del text["vocab_size"]
    path.write_text(json.dumps({"model_type": "gemma3", "text_config": text}))

    target = load_target_vocabulary(folder)

    assert (target.vocab_size, target.hidden_size) == (VOCAB, HIDDEN)
    text["hidden_size"] = HIDDEN + 1
    path.write_text(json.dumps({"text_config": text}))
    with pytest.raises(MismatchError, match=r"needs \[61, 33\]"):
        load_target_vocabulary(folder)


def test_a_target_without_tables_is_refused(tmp_path: Path) -> None:
    """Missing or contradictory tables are named."""
    folder = write_target(tmp_path / "target", random_table(1))
    change_config(folder, vocab_size=VOCAB + 1)
    with pytest.raises(MismatchError, match=r"embed_tokens\.weight has shape \[61, 32\]"):
        load_target_vocabulary(folder)
    save_file({"norm.weight": torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(MismatchError, match=r"0 tensors named \*embed_tokens\.weight"):
        load_target_vocabulary(folder)


def test_the_engine_says_what_it_holds(engine: EagleDraftEngine, head_path: Path) -> None:
    """Info carries the shape of the target, the eos ids and stable digests."""
    info = engine.info
    assert (info.name, info.vocab_size, info.hidden_size) == ("head", VOCAB, HIDDEN)
    assert (info.num_layers, info.context_length, info.dtype) == (1, 128, "float32")
    assert info.eos_token_ids == (2, 3)
    head, _ = load_head(head_path)
    weights = sum(parameter.numel() for parameter in head.parameters())
    assert info.num_parameters == weights + 2 * VOCAB * HIDDEN
    assert len(info.digest) == len(info.embedding_digest) == 64
    assert engine.feature_spec is not None
    assert engine.feature_spec.layer_ids is None
    assert engine.feature_width == HIDDEN


def test_the_digest_follows_the_weights(head_path: Path, target_path: Path) -> None:
    """Another weight is another digest; the embedding's is the target's alone."""

    def load() -> EagleDraftEngine:
        return load_draft(
            head_path, target_path, device="cpu", dtype="float32", kv_capacity_tokens=600
        )

    before = load().info
    assert load().info == before
    add_tensors(head_path, {"fc.bias": torch.ones(HIDDEN)})
    after = load().info
    assert after.digest != before.digest
    assert after.embedding_digest == before.embedding_digest


def test_an_unknown_dtype_is_refused(head_path: Path, target_path: Path) -> None:
    """The message lists the dtypes there are."""
    with pytest.raises(InvalidArgumentError, match=r"dtype = int8.*bfloat16"):
        load_draft(head_path, target_path, device="cpu", dtype="int8", kv_capacity_tokens=600)
