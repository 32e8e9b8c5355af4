"""Heads of every published format: converted, they draft what their own forward says."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.draft.conftest import write_target
from tests.unit.draft.published_heads import (
    DRAFT_IDS,
    FORMATS,
    HIDDEN,
    VOCAB,
    Published,
    Target,
)

from arborist.core.engine import DraftOpen, Expand, Extend
from arborist.core.errors import InvalidArgumentError, MismatchError
from arborist.core.features import FeatureSpec
from arborist.core.tree import Level
from arborist.draft.engine import EagleDraftEngine, load_draft
from arborist.draft.import_head import import_head

SESSION = ("controller", "a")
TOKENS = [7, 3, 60, 12, 40]
TOP_K = 4


@pytest.fixture(scope="module")
def target() -> Target:
    """A Llama of eight layers."""
    return Target()


@pytest.fixture(scope="module")
def target_path(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder."""
    return target.write(tmp_path_factory.mktemp("models") / "target")


def load(folder: Path, target_path: Path) -> EagleDraftEngine:
    """Loads a converted head."""
    return load_draft(folder, target_path, device="cpu", dtype="float32", kv_capacity_tokens=1200)


def level_of(engine: EagleDraftEngine, work: Extend | Expand) -> Level:
    """Runs one command that gives a level."""
    (outcome,) = engine.run([work])
    assert isinstance(outcome, Level), outcome
    return outcome


def changed(head: Published, **tensors: torch.Tensor | None) -> Published:
    """A head with tensors replaced, added, or taken out (None)."""
    merged = {**head.tensors, **tensors}
    return dataclasses.replace(head, tensors={k: v for k, v in merged.items() if v is not None})


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_drafts_what_its_own_forward_says(
    name: str, target: Target, target_path: Path, tmp_path: Path
) -> None:
    """Three levels of a tree equal the format's own formulas, recomputed along every path."""
    head = FORMATS[name](target)
    imported = import_head(head.write(tmp_path / "head"), tmp_path / "out", target_path)
    engine = load(imported.path, target_path)
    assert engine.feature_spec == FeatureSpec(head.layers)
    features = torch.randn(
        len(TOKENS), engine.feature_width, generator=torch.Generator().manual_seed(9)
    )
    rows = list(features.double().numpy())
    engine.open(SESSION, DraftOpen(max_length=20))
    level = level_of(engine, Extend(SESSION, 0, TOKENS, features, TOP_K))
    paths: list[list[int]] = [[]]
    for frontier in ([0, 2], [5, 1], None):
        expected = [head.naive.children(TOKENS, rows, path, TOP_K) for path in paths]
        np.testing.assert_array_equal(level.tokens, [tokens for tokens, _ in expected])
        np.testing.assert_allclose(
            level.logprobs, [values for _, values in expected], atol=1e-5, rtol=0
        )
        if frontier is not None:
            paths = [
                [*paths[row // TOP_K], int(level.tokens[row // TOP_K, row % TOP_K])]
                for row in frontier
            ]
            level = level_of(engine, Expand(SESSION, frontier, TOP_K))


def test_sessions_of_a_batch_do_not_mix(target: Target, target_path: Path, tmp_path: Path) -> None:
    """True pairs are fused and nodes are not, whoever else is in the forward."""
    head = FORMATS["official_eagle3"](target).write(tmp_path / "head")
    import_head(head, tmp_path / "out", target_path)
    alone, mixed = load(tmp_path / "out", target_path), load(tmp_path / "out", target_path)
    features = torch.randn(5, alone.feature_width)
    other = ("controller", "b")
    for engine in (alone, mixed):
        for session in (SESSION, other):
            engine.open(session, DraftOpen(max_length=20))
        level_of(engine, Extend(SESSION, 0, TOKENS, features, TOP_K))
    expand, extend = Expand(SESSION, [0, 3], TOP_K), Extend(other, 0, TOKENS, features, TOP_K)
    singles = [level_of(alone, expand), level_of(alone, extend)]
    for ours, theirs in zip(mixed.run([expand, extend]), singles, strict=True):
        assert isinstance(ours, Level)
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["official_eagle3", "specforge", "speculators_eagle1"])
def test_heads_run_in_half_precision(
    name: str, dtype: str, target: Target, target_path: Path, tmp_path: Path
) -> None:
    """Features and weights of another dtype are converted; log-probs stay close."""
    path = tmp_path / "out"
    import_head(FORMATS[name](target).write(tmp_path / "head"), path, target_path)
    half = load_draft(path, target_path, device="cpu", dtype=dtype, kv_capacity_tokens=600)
    features = torch.randn(
        len(TOKENS), half.feature_width, generator=torch.Generator().manual_seed(9)
    )
    levels = []
    for engine in (half, load(path, target_path)):
        engine.open(SESSION, DraftOpen(max_length=20))
        levels.append(level_of(engine, Extend(SESSION, 0, TOKENS, features, TOP_K)))
    np.testing.assert_allclose(levels[0].logprobs, levels[1].logprobs, atol=0.2)


def test_more_children_than_draft_ids_are_refused(
    target: Target, target_path: Path, tmp_path: Path
) -> None:
    """The limit of top_k is the draft vocabulary."""
    head = FORMATS["official_eagle3"](target).write(tmp_path / "head")
    engine = load(import_head(head, tmp_path / "out", target_path).path, target_path)
    engine.warm_up()
    engine.open(SESSION, DraftOpen(max_length=20))
    (outcome,) = engine.run([Extend(SESSION, 0, [1], torch.zeros(1, 3 * HIDDEN), 21)])
    assert isinstance(outcome, InvalidArgumentError)
    assert str(len(DRAFT_IDS)) in str(outcome)


def test_the_report_says_what_was_found(target: Target, target_path: Path, tmp_path: Path) -> None:
    """Format, file, tables, vocabulary, layers and what was renamed."""
    head = FORMATS["specforge"](target).write(tmp_path / "head")
    text = "\n".join(import_head(head, tmp_path / "out", target_path).lines)
    for part in (
        "format: EAGLE-3 (SGLang or SpecForge, LlamaForCausalLMEagle3)",
        "of model.safetensors",
        "embedding: the target's",
        "LM head: its own",
        f"draft vocabulary: {len(DRAFT_IDS)} of {VOCAB} tokens",
        "inputs of layers 1, 4, 7 of 8 (its config)",
    ):
        assert part in text


@pytest.mark.parametrize("name", FORMATS)
def test_an_unknown_tensor_is_refused_by_name(
    name: str, target: Target, target_path: Path, tmp_path: Path
) -> None:
    """Whatever the format, a tensor without a place is named and nothing is written."""
    head = changed(FORMATS[name](target), **{"enorm.weight": torch.ones(HIDDEN)})
    head.write(tmp_path / "head")
    with pytest.raises(MismatchError, match=r"enorm\.weight in .*head is unknown"):
        import_head(tmp_path / "head", tmp_path / "out", target_path)
    assert [path.name for path in tmp_path.iterdir()] == ["head"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_tensor_is_refused_by_name(
    name: str, target: Target, target_path: Path, tmp_path: Path
) -> None:
    """Whatever the format, a missing tensor is named as the official format calls it."""
    head = FORMATS[name](target)
    lost = next(one for one in head.tensors if one.endswith("mlp.up_proj.weight"))
    changed(head, **{lost: None}).write(tmp_path / "head")
    with pytest.raises(MismatchError, match=r"mlp\.up_proj\.weight is missing"):
        import_head(tmp_path / "head", tmp_path / "out", target_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"d2t": torch.full((20,), 50)}, "d2t leads outside"),
        ({"d2t": -torch.arange(20)}, "d2t names a token twice"),
        ({"t2d": torch.ones(VOCAB, dtype=torch.bool)}, "t2d names other tokens than d2t"),
        ({"t2d": torch.ones(7, dtype=torch.bool)}, r"t2d has shape \[7\]"),
        ({"d2t": None, "t2d": None}, r"d2t is missing.*draft_vocab_size in config\.json is 20"),
        ({"d2t": torch.tensor([0.0, 1.0])}, r"d2t has shape \[2\] and dtype torch\.float32"),
        ({"fc_norm.0.weight": torch.ones(HIDDEN)}, r"fc_norm\.1\.weight is missing"),
        ({"lm_head.weight": torch.ones(19, HIDDEN)}, r"lm_head\.weight has shape \[19, 32\]"),
        ({"fc.weight": torch.ones(HIDDEN, 70)}, r"fc\.weight reads 70"),
        ({"fc.weight": torch.ones(HIDDEN, 2 * HIDDEN)}, r"fc\.weight reads 2 layers"),
        ({"norm.weight": torch.full((HIDDEN,), torch.nan)}, r"norm\.weight holds.*not finite"),
    ],
)
def test_a_broken_eagle3_head_is_refused(
    tensors: dict, message: str, target: Target, target_path: Path, tmp_path: Path
) -> None:
    """Vocabulary maps, widths and numbers are checked, and the tensor is named."""
    changed(FORMATS["official_eagle3"](target), **tensors).write(tmp_path / "head")
    with pytest.raises(MismatchError, match=message):
        import_head(tmp_path / "head", tmp_path / "out", target_path)


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("official_eagle2", "hidden_size", 2 * HIDDEN, r"fc\.weight has shape \[32, 64\]"),
        ("official_eagle3", "hidden_size", 2 * HIDDEN, r"fc\.weight has shape \[32, 96\]"),
        ("official_eagle2", "vocab_size", VOCAB + 3, r"embed_tokens\.weight.*vocab_size 64"),
        ("official_eagle3", "vocab_size", VOCAB + 3, "t2d.*vocab_size 64"),
        ("official_eagle3", "num_hidden_layers", 5, "the target has 5 layers"),
        ("specforge", "num_hidden_layers", 7, "input of layer 7: the target has layers 0 to 6"),
    ],
)
def test_a_head_of_another_target_is_refused(
    name: str, field: str, value: int, message: str, target: Target, tmp_path: Path
) -> None:
    """Width, vocabulary and, for EAGLE-3, the number of layers must be the target's."""
    config = {"num_hidden_layers": 8, "hidden_size": HIDDEN, "vocab_size": VOCAB, field: value}
    table = torch.zeros(config["vocab_size"], config["hidden_size"])
    other = write_target(tmp_path / "other", table, table.clone(), **config)
    FORMATS[name](target).write(tmp_path / "head")
    with pytest.raises(MismatchError, match=message):
        import_head(tmp_path / "head", tmp_path / "out", other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_before_fc": True}, r"input_norm\.weight is missing"),
        ({"fc_norm": True}, r"fc_norm\.0\.weight is missing"),
        ({"draft_vocab_size": 19}, "d2t has 20 rows: draft_vocab_size in config.json is 19"),
        ({"feature_layer_ids": [2, 5, 4]}, r"feature_layer_ids = \[2, 5, 4\]: must ascend"),
        ({"feature_layer_ids": [2, 5]}, r"layer ids = \[2, 5\]: fc.weight reads 3 layers"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling = yarn"),
        ({"hidden_size": None}, "config.json of .*head"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(
    changes: dict, message: str, target: Target, target_path: Path, tmp_path: Path
) -> None:
    """What config.json announces must be there."""
    head = FORMATS["official_eagle3"](target)
    dataclasses.replace(head, config={**head.config, **changes}).write(tmp_path / "head")
    with pytest.raises(MismatchError, match=message):
        import_head(tmp_path / "head", tmp_path / "out", target_path)


def test_an_official_head_in_safetensors_needs_no_import(
    target: Target, target_path: Path, tmp_path: Path
) -> None:
    """A worker reads SpecForge's form as it is, layer ids included."""
    engine = load(FORMATS["specforge"](target).write(tmp_path / "head"), target_path)
    assert engine.feature_spec == FeatureSpec((1, 4, 7))


def test_a_narrow_head_must_bring_its_tables(
    target: Target, target_path: Path, tmp_path: Path
) -> None:
    """The target's embedding has another width, so the head's own is wanted by name."""
    head = changed(FORMATS["official_eagle3_narrow"](target), **{"embed_tokens.weight": None})
    head.write(tmp_path / "head")
    with pytest.raises(
        MismatchError, match=r"embed_tokens\.weight is missing: the head is 24 wide"
    ):
        import_head(tmp_path / "head", tmp_path / "out", target_path)


def test_a_tensor_that_is_there_twice_is_refused(
    target: Target, target_path: Path, tmp_path: Path
) -> None:
    """Two names of one tensor are no head."""
    head = FORMATS["speculators_eagle1"](target)
    changed(head, **{"fc.weight": torch.ones(HIDDEN, 2 * HIDDEN)}).write(tmp_path / "head")
    with pytest.raises(MismatchError, match=r"fc\.weight is there twice"):
        import_head(tmp_path / "head", tmp_path / "out", target_path)


def test_a_pickle_that_is_more_than_tensors_is_refused(
    target: Target, target_path: Path, tmp_path: Path
) -> None:
    """Code in a pickle is never run: loading takes tensors alone."""

    class Planted:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    head = FORMATS["official_eagle3"](target).write(tmp_path / "head")
    with (head / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"fc.weight": Planted()}, file, protocol=2)
    with pytest.raises(MismatchError, match=r"cannot read .* as tensors alone"):
        import_head(head, tmp_path / "out", target_path)
    assert not (tmp_path / "ran").exists()


def test_a_sharded_pickle_is_read(target: Target, target_path: Path, tmp_path: Path) -> None:
    """An index and two pickles are one head."""
    head = FORMATS["official_eagle3"](target)
    folder = head.write(tmp_path / "head")
    (folder / "pytorch_model.bin").unlink()
    names = sorted(head.tensors)
    shards = {"a.bin": names[:5], "b.bin": names[5:]}
    for file, part in shards.items():
        torch.save({name: head.tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "15 tensors" in "".join(import_head(folder, tmp_path / "out", target_path).lines)


@pytest.mark.parametrize(
    ("file", "message"),
    [("config.json", "has no config.json"), ("pytorch_model.bin", "has neither")],
)
def test_a_missing_file_is_named(
    file: str, message: str, target: Target, target_path: Path, tmp_path: Path
) -> None:
    """Config and weights must be there."""
    head = FORMATS["official_eagle3"](target).write(tmp_path / "head")
    (head / file).unlink()
    with pytest.raises(MismatchError, match=message):
        import_head(head, tmp_path / "out", target_path)


def test_a_full_destination_is_left_alone(
    target: Target, target_path: Path, tmp_path: Path
) -> None:
    """Nothing is written over."""
    head = FORMATS["official_eagle2"](target).write(tmp_path / "head")
    with pytest.raises(InvalidArgumentError, match="destination"):
        import_head(head, head, target_path)
