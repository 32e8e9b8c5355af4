"""A language-model draft against transformers alone: every node's path from scratch."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.draft.test_engine import Step, random_script
from tests.unit.draft.tiny_language_model import VOCAB, logprobs_after, tiny_model, write_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from arborist.common.model_files import ModelFiles
from arborist.core.engine import (
    DraftOpen,
    DraftOutcome,
    DraftWork,
    Expand,
    ExpandTree,
    Extend,
    Extended,
    SessionKey,
)
from arborist.core.errors import ArboristError, InvalidArgumentError, MismatchError
from arborist.core.pool import Pool
from arborist.core.tree import Level
from arborist.draft.any_draft import load_any_draft
from arborist.draft.language_model_engine import LanguageModelDraftEngine
from arborist.draft.language_model_files import is_language_model
from arborist.draft.run_ahead import RunAheadDraft
from arborist.draft.shared_tokens import check_shared_tokens
from arborist.draft.target_facts import read_target_facts
from arborist.draft.tree_engine import SCRATCH_TOKENS, TreeDraftEngine

A: SessionKey = ("controller", "a")
B: SessionKey = ("controller", "b")
FAMILIES = ["llama", "mistral", "gemma3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A draft of every family, written once."""
    root = tmp_path_factory.mktemp("models")
    return {family: write_model(root / family, tiny_model(family)) for family in FAMILIES}


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def engines(request: pytest.FixtureRequest, folders: dict[str, Path]) -> dict[str, TreeDraftEngine]:
    """Their engines, on every device of this machine."""
    return {family: load(folder, device=request.param) for family, folder in folders.items()}


def load(folder: Path, target: Path | None = None, **options) -> TreeDraftEngine:
    """The engine of a draft, which is its own target unless said."""
    settings = {"device": "cpu", "dtype": "float32", "kv_capacity_tokens": 5000} | options
    return load_any_draft(folder, target or folder, **settings)


def tokens_of(count: int, seed: int) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (count,), generator=generator).tolist()


def works(session: SessionKey, script: list[Step], seed: int) -> list[DraftWork]:
    """Turns a script of rounds into commands."""
    made: list[DraftWork] = []
    begin = 0
    for index, step in enumerate(script):
        if step.pairs:
            ids = tokens_of(step.pairs, 100 * seed + index)
            made.append(Extend(session, begin, ids, None, step.top_k))
            begin += step.pairs
        else:
            made.append(Expand(session, list(step.rows), step.top_k))
    return made


def run_one(engine: TreeDraftEngine, work: DraftWork) -> DraftOutcome:
    """Runs a batch of one."""
    (outcome,) = engine.run([work])
    return outcome


def assert_level(level: DraftOutcome, folder: Path, paths: list[list[int]]) -> None:
    """Every row holds the best children of its path, as transformers alone ranks them."""
    assert isinstance(level, Level), level
    assert len(level.tokens) == len(paths)
    for row, path in enumerate(paths):
        expected = logprobs_after(folder, path)
        top_k = level.tokens.shape[1]
        assert level.tokens[row].tolist() == expected.topk(top_k).indices.tolist()
        np.testing.assert_allclose(
            level.logprobs[row], expected.topk(top_k).values, atol=5e-4, rtol=0
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_trees_are_what_every_path_from_scratch_gives(
    seed: int,
    family: str,
    folders: dict[str, Path],
    engines: dict[str, TreeDraftEngine],
) -> None:
    """Ragged trees over several rounds, past the sliding window, on top of all committed tokens."""
    engine, held = engines[family], list[int]()
    level: list[list[int]] = []
    engine.open(A, DraftOpen(max_length=40))
    for work in works(A, random_script(seed), seed):
        outcome = run_one(engine, work)
        if isinstance(work, Extend):
            held += work.tokens
            if not work.top_k:
                assert outcome == Extended(len(held))
                continue
            paths = [held]
        else:
            assert isinstance(work, Expand)
            paths = [level[row] for row in work.rows]
        assert_level(outcome, folders[family], paths)
        assert isinstance(outcome, Level)
        level = [
            [*path, child]
            for path, children in zip(paths, outcome.tokens.tolist(), strict=True)
            for child in children
        ]
        engine.check_integrity()
    engine.release(A)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_its_items_alone(family: str, engines: dict[str, TreeDraftEngine]) -> None:
    """Sessions at different places of different scripts share forwards without a trace of it."""
    engine = engines[family]
    queues = {
        key: works(key, random_script(seed), seed)
        for seed in range(4)
        for key in [("controller", str(seed))]
    }
    alone: dict[SessionKey, list[DraftOutcome]] = {}
    for key, queue in queues.items():
        engine.open(key, DraftOpen(max_length=40))
        alone[key] = [run_one(engine, work) for work in queue]
        engine.open(key, DraftOpen(max_length=40))
    rng = np.random.default_rng(5)
    place = dict.fromkeys(queues, 0)
    while chosen := [key for key in queues if place[key] < len(queues[key])]:
        chosen = [key for key in chosen if rng.random() < 0.7]
        outcomes = engine.run([queues[key][place[key]] for key in chosen])
        for key, outcome in zip(chosen, outcomes, strict=True):
            expected = alone[key][place[key]]
            place[key] += 1
            if isinstance(expected, Level):
                assert isinstance(outcome, Level)
                np.testing.assert_array_equal(outcome.tokens, expected.tokens)
                np.testing.assert_allclose(outcome.logprobs, expected.logprobs, atol=5e-4, rtol=0)
            else:
                assert outcome == expected
    for key in queues:
        engine.release(key)


@pytest.mark.parametrize("name", ["chain", "eagle2", "eagle2_no_value"])
def test_a_pool_is_what_levels_give(name: str, engines: dict[str, TreeDraftEngine]) -> None:
    """Grown in one call or asked for level by level, ahead or not: the same candidates."""
    engine = engines["llama"]
    ahead = RunAheadDraft(engine)
    top_k = 1 if name == "chain" else 4
    engine.open(A, DraftOpen(max_length=40))
    ahead.open(B, DraftOpen(max_length=40))
    for begin in (0, 6):
        extend = Extend(A, begin, tokens_of(6, begin), None, top_k)
        engine.run([extend])
        ahead.run([replace(extend, session=B)])
        pool = run_one(engine, ExpandTree(A, name, 4, top_k))
        assert isinstance(pool, Pool)
        for one in pool.levels:
            ahead.run_ahead()
            level = ahead.run([Expand(B, one.frontier.tolist(), top_k)])[0]
            assert isinstance(level, Level)
            np.testing.assert_array_equal(level.tokens, one.level.tokens)
    assert ahead.num_guessed > 0
    for key in (A, B):
        engine.release(key)


def test_a_prompt_in_chunks_is_the_prompt_in_one(engines: dict[str, TreeDraftEngine]) -> None:
    """A windowed model too gives the same level however its tokens came."""
    engine, ids = engines["mistral"], tokens_of(17, 9)
    for key in (A, B):
        engine.open(key, DraftOpen(max_length=40))
    whole = run_one(engine, Extend(A, 0, ids, None, 4))
    for begin in range(0, 16, 4):
        assert run_one(engine, Extend(B, begin, ids[begin : begin + 4], None)) == Extended(
            begin + 4
        )
    parts = run_one(engine, Extend(B, 16, ids[16:], None, 4))
    assert isinstance(whole, Level)
    assert isinstance(parts, Level)
    np.testing.assert_array_equal(whole.tokens, parts.tokens)
    for key in (A, B):
        engine.release(key)


def test_features_are_refused(engines: dict[str, TreeDraftEngine]) -> None:
    """It reads none, and says so instead of dropping them; the session goes on."""
    engine = engines["llama"]
    assert engine.feature_spec is None
    assert engine.feature_width == 0
    engine.open(A, DraftOpen(max_length=40))
    refused = run_one(engine, Extend(A, 0, [1, 2], torch.zeros(2, 32), 3))
    with pytest.raises(InvalidArgumentError, match=r"features = .*: must be none"):
        raise_it(refused)
    assert isinstance(run_one(engine, Extend(A, 0, [1, 2], None, 3)), Level)
    engine.release(A)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (Extend(A, 5, [1], None, 3), "begin = 5: must be the pairs held, 4"),
        (Extend(A, 4, [], None, 3), "tokens = 0"),
        (Extend(A, 4, [1] * 37, None, 3), "tokens = 37: must be at most 36 more"),
        (Extend(A, 4, [VOCAB], None, 3), f"tokens = {VOCAB}"),
        (Extend(A, 4, [1], None, 33), "top_k = 33"),
        (Expand(A, [3], 3), r"rows = 3: must be in \[0, 3\)"),
        (Expand(A, [1, 1], 3), "rows = repeated"),
        (ExpandTree(A, "eagle2", 3, 4), "top_k = 4: must be level 1's, 3"),
    ],
    ids=str,
)
def test_a_wrong_command_changes_nothing(
    work: DraftWork, said: str, engines: dict[str, TreeDraftEngine]
) -> None:
    """The error names field, value and limit; the other session of the batch is answered."""
    engine = engines["llama"]
    for key in (A, B):
        engine.open(key, DraftOpen(max_length=40))
        engine.run([Extend(key, 0, tokens_of(4, 3), None, 3)])
    bad, good = engine.run([work, Expand(B, [0, 2], 3)])
    with pytest.raises(InvalidArgumentError, match=said):
        raise_it(bad)
    again = run_one(engine, Expand(A, [0, 2], 3))
    assert isinstance(good, Level)
    assert isinstance(again, Level)
    np.testing.assert_array_equal(again.tokens, good.tokens)
    engine.check_integrity()
    for key in (A, B):
        engine.release(key)


def test_a_session_longer_than_its_context_is_drafted_as_far_as_it_goes(
    engines: dict[str, TreeDraftEngine],
) -> None:
    """It reserves no more than its context, takes no token past it, and drafts up to the end."""
    engine = engines["llama"]
    assert engine.open(A, DraftOpen(max_length=5000)) == 64 + SCRATCH_TOKENS
    run_one(engine, Extend(A, 0, tokens_of(62, 1), None))
    assert isinstance(run_one(engine, Extend(A, 62, [3, 4], None, 3)), Level)
    assert isinstance(run_one(engine, Expand(A, [0, 1], 3)), Level)
    refused = run_one(engine, Extend(A, 64, [5], None, 3))
    assert isinstance(refused, InvalidArgumentError)
    engine.release(A)


def raise_it(outcome: object) -> None:
    """Raises an error outcome."""
    assert isinstance(outcome, ArboristError), outcome
    raise outcome


def with_tokenizer(folder: Path, source: Path, size: int, **changed: str) -> Path:
    """Copies a model and gives it a tokenizer of numbered words, some of them others."""
    shutil.copytree(source, folder)
    words = {f"w{index}": index for index in range(size)}
    for word, new in changed.items():
        words[new] = words.pop(word)
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "w0")))
    fast.save_pretrained(folder)
    return folder


def test_a_padded_vocabulary_is_taken_when_the_tokenizers_agree(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    """More rows on either side are padding: no id outside the target's is ever drafted."""
    wide = write_model(tmp_path / "w", tiny_model(seed=2, vocab_size=VOCAB + 19))
    small = with_tokenizer(tmp_path / "small", folders["llama"], 50)
    padded = with_tokenizer(tmp_path / "padded", wide, 50)
    engine = load(padded, small)
    assert engine.info.vocab_size == VOCAB
    for work in [Extend(A, 0, [5, 6], None, 32), Expand(A, list(range(32)), 32)]:
        if isinstance(work, Extend):
            engine.open(A, DraftOpen(max_length=40))
        level = run_one(engine, work)
        assert isinstance(level, Level)
        assert level.tokens.max() < VOCAB
    narrow = load(small, padded)
    assert narrow.info.vocab_size == VOCAB + 19
    narrow.open(A, DraftOpen(max_length=40))
    assert isinstance(run_one(narrow, Extend(A, 0, [5, 6], None, 3)), Level)
    unknown = run_one(narrow, Extend(A, 2, [VOCAB], None, 3))
    assert isinstance(unknown, InvalidArgumentError)


@pytest.mark.parametrize(
    ("draft_size", "changed", "vocab_size", "said"),
    [
        (50, {"w7": "other"}, VOCAB, "id 7 is 'other', the target's is 'w7'"),
        (40, {}, 45, "vocab_size 45: the target's tokenizer has ids up to 49"),
        (None, {}, 70, "vocab_size 70, the target 61, and no tokenizer"),
        (None, {}, VOCAB, "draft .* has no tokenizer that can be read: its"),
    ],
)
def test_other_tokens_are_refused_in_one_line(
    draft_size: int | None,
    changed: dict[str, str],
    vocab_size: int,
    said: str,
    tmp_path: Path,
    folders: dict[str, Path],
) -> None:
    """Before any weights are loaded, and the line says what differs."""
    target = with_tokenizer(tmp_path / "target", folders["llama"], 50)
    draft = write_model(tmp_path / "d", tiny_model(vocab_size=vocab_size))
    if draft_size is not None:
        draft = with_tokenizer(tmp_path / "draft", draft, draft_size, **changed)
    with pytest.raises(MismatchError, match=said) as refused:
        load(draft, target)
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("library_class", "said"),
    [("AutoTokenizer", "cannot read the tokenizer of"), ("AutoConfig", "cannot read config.json")],
)
def test_a_library_that_is_missing_is_said_in_one_line(
    library_class: str,
    said: str,
    tmp_path: Path,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not in the wall of text that it comes in."""
    target = with_tokenizer(tmp_path / "target", folders["llama"], 50)
    draft = with_tokenizer(tmp_path / "draft", folders["llama"], 50)
    facts = read_target_facts(target)

    def fail(*_: object, **__: object) -> None:
        raise ImportError("\n it needs the library\nand\nmore")

    monkeypatch.setattr(f"transformers.{library_class}.from_pretrained", fail)
    with pytest.raises(MismatchError, match=said) as refused:
        check_shared_tokens(str(draft), None, facts)
    assert refused.value.message.endswith("it needs the library")


def test_a_vocabulary_file_is_for_heads(folders: dict[str, Path]) -> None:
    """FR-Spec cuts a head's LM head; a language model refuses it."""
    with pytest.raises(InvalidArgumentError, match=r"vocabulary_file = 3 ids: must be unset"):
        load(folders["llama"], token_ids=[1, 2, 3])


def test_the_folder_says_what_kind_of_draft_it_holds(folders: dict[str, Path]) -> None:
    """Heads name a causal architecture too; their tensors tell."""
    golden = Path(__file__).resolve().parents[2] / "golden"
    kinds = {
        golden / "eagle2" / "eagle_head": False,
        golden / "eagle3" / "eagle_head": False,
        golden / "eagle2" / "target": True,
        **dict.fromkeys(folders.values(), True),
    }
    for folder, expected in kinds.items():
        files = ModelFiles(folder)
        assert is_language_model(files.config, files.shards) is expected, folder
    llama = {"architectures": ["LlamaForCausalLM"]}
    for name in ["fc.weight", "model.fc.weight", "model.model.fc.weight", "layers.0.x.weight"]:
        assert not is_language_model(llama, {name, "model.embed_tokens.weight"})
    assert not is_language_model({}, {"model.embed_tokens.weight"})
    loaded = load(golden / "eagle2" / "target")
    assert isinstance(loaded, LanguageModelDraftEngine)
