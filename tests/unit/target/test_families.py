"""Every family of targets: what is served is what transformers says, past the sliding window."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tests.unit.target.families import (
    CONTEXT,
    FAMILIES,
    VOCAB_SIZE,
    WINDOW,
    TrainedFamily,
    texts,
    train_family,
)
from tests.unit.target.sessions import Decoder, draft_tree
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from arborist.cli.local import LocalModel
from arborist.common.config import load_config
from arborist.core.policy_settings import POLICY_NAMES
from arborist.draft.engine import load_draft
from arborist.orchestrator.api.incoming import IncomingRequest, TokenPrompt
from arborist.orchestrator.generation import SpeculationOptions
from arborist.orchestrator.round import Round
from arborist.target.engine import HfTargetEngine, load_target

PROMPT = tuple(texts(1, 2 * WINDOW + 5, 5)[0].tolist())
MAX_TOKENS = 40
PLAIN = SpeculationOptions(enabled=False)
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0.7, "top_k": 20, "top_p": 0.95, "seed": 7},
    {"temperature": 1.2, "seed": 2**63 + 5},
]
# How far below the best logit a half-precision target's token may be, in the reference's own
# logits of the same precision: rounding, nothing more.
MAX_GAP = {"bfloat16": 0.3, "float16": 0.05}

Train = Callable[[str], TrainedFamily]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains each family once."""
    return cache(lambda name: train_family(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, trained: Train) -> TrainedFamily:
    """Each family in turn."""
    return trained(request.param)


def load(family: TrainedFamily, dtype: str = "float32") -> HfTargetEngine:
    """Loads the target as a worker does."""
    folder = family.model.folder
    return load_target(folder, device="cpu", dtype=dtype, kv_capacity_tokens=2 * CONTEXT)


def load_pair(family: TrainedFamily, target: Path | None = None) -> LocalModel:
    """Loads target and head behind the decode loop that serves."""
    folder = target or family.model.folder
    arguments: dict[str, Any] = {
        "device": "cpu",
        "dtype": "float32",
        "kv_capacity_tokens": 2 * CONTEXT,
    }
    draft = load_draft(family.head, folder, **arguments)
    return LocalModel(load_target(folder, **arguments), draft, None, load_config())


def decode(
    pair: LocalModel, options: SpeculationOptions, ignore_eos: bool = True, **sampling: Any
) -> tuple[list[int], float]:
    """Decodes the prompt; returns the output and tau."""
    rounds: list[Round] = []
    request = IncomingRequest(
        TokenPrompt(PROMPT),
        max_tokens=MAX_TOKENS,
        ignore_eos=ignore_eos,
        speculation=options,
        **sampling,
    )
    output = pair.complete(request, on_round=rounds.append).token_ids
    accepted = sum(one.accepted_count for one in rounds[1:])
    return list(output), accepted / (len(rounds) - 1) + 1


def generate(model: PreTrainedModel) -> list[int]:
    """Lets transformers continue the prompt greedily, to an end token of its own configuration."""
    ids = torch.tensor([PROMPT])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False
    )
    return output[0, len(PROMPT) :].tolist()


def states(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """Returns the states transformers gives, (tokens, hidden)."""
    decoder = model.get_decoder()
    return decoder(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0]


def without_window(family: TrainedFamily) -> PreTrainedModel:
    """Loads a family's weights into a model whose window is the whole context."""
    config = AutoConfig.from_pretrained(family.model.folder)
    config.get_text_config().sliding_window = CONTEXT
    model = AutoModelForCausalLM.from_pretrained(
        family.model.folder, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval().requires_grad_(False)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Returns the distance of states, relative to the expected ones."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def test_every_policy_says_what_generate_says(family: TrainedFamily) -> None:
    """Greedy output equals transformers' `generate` token for token, and drafts pay."""
    model = family.model.reference()
    model.generation_config.eos_token_id = None
    expected = generate(model)
    pair = load_pair(family)

    taus: dict[str, float] = {}
    for name in POLICY_NAMES:
        output, taus[name] = decode(pair, SpeculationOptions(policy=name))
        assert output == expected, name

    assert decode(pair, PLAIN) == (expected, 1.0)
    assert len(set(expected)) > WINDOW
    assert taus["eagle2"] >= 1.5


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["cut", "whole"])
def test_a_seed_fixes_the_output_with_and_without_speculation(
    family: TrainedFamily, sampling: dict[str, Any]
) -> None:
    """Sampled tokens are those of plain decoding, whatever is drafted."""
    pair = load_pair(family)
    expected, _ = decode(pair, PLAIN, **sampling)

    outputs = {
        name: decode(pair, SpeculationOptions(policy=name), **sampling) for name in POLICY_NAMES
    }

    assert all(output == expected for output, _ in outputs.values())
    assert outputs["eagle2"][1] > 1.2


def test_states_past_the_window_are_the_models_own(family: TrainedFamily) -> None:
    """Two sessions in one forward, with trees: their features are transformers' states."""
    engine, random = load(family), Random(3)
    prompts = [list(PROMPT), texts(1, 3, 8)[0].tolist()]
    truths = [
        Decoder(engine, prompt, f"plain {i}", max_length=200).plain(3 * WINDOW)
        for i, prompt in enumerate(prompts)
    ]
    sessions = [
        Decoder(engine, prompt, f"tree {i}", max_length=200, chunk=7)
        for i, prompt in enumerate(prompts)
    ]

    while min(len(one.output) for one in sessions) < 2 * WINDOW:
        work = [
            one.work(*draft_tree(random, 12, VOCAB_SIZE, truth[len(one.output) :]))
            for one, truth in zip(sessions, truths, strict=True)
        ]
        for one, item, outcome in zip(sessions, work, engine.run(work), strict=True):
            one.commit(item, outcome)

    model = family.model.reference()
    for one, truth in zip(sessions, truths, strict=True):
        expected = states(model, one.log[:-1])
        assert relative_error(torch.cat(one.features), expected) < 1e-4
        assert one.output[: len(truth)] == truth[: len(one.output)]
    if family.has_window:
        far = states(without_window(family), sessions[0].log[:-1])
        assert relative_error(far, states(model, sessions[0].log[:-1])) > 1e-2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_differs_by_rounding_alone(family: TrainedFamily, dtype: str) -> None:
    """Every token has, up to rounding, the highest logit that transformers gives in that dtype."""
    engine, random = load(family, dtype), Random(4)
    assert (engine.info.dtype, engine.info.eos_token_ids) == (dtype, (1, 3))
    decoder = Decoder(engine, list(PROMPT), max_length=200)

    while len(decoder.output) < 2 * WINDOW:
        decoder.round(*draft_tree(random, 8, VOCAB_SIZE, []))

    model = family.model.reference().to(getattr(torch, dtype))
    logits = model(torch.tensor([decoder.log[:-1]])).logits[0, len(PROMPT) - 1 :].float()
    chosen = logits.gather(1, torch.tensor(decoder.output)[:, None])[:, 0]
    assert float((logits.amax(-1) - chosen).max()) < MAX_GAP[dtype]


@pytest.mark.parametrize("name", ["llama31", "gemma3"])
def test_any_end_token_of_the_list_ends_the_output(
    trained: Train, name: str, tmp_path: Path
) -> None:
    """Output stops where `generate` stops, after the end token, though a round drafted on."""
    family = trained(name)
    copy = shutil.copytree(family.model.folder, tmp_path / "copy")
    model = family.model.reference()
    model.generation_config.eos_token_id = None
    ends = [1, generate(model)[10]]
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    model.generation_config.eos_token_id = ends
    expected = generate(model)

    output, _ = decode(load_pair(family, copy), SpeculationOptions(), ignore_eos=False)

    assert output == expected
    assert len(output) <= 11
    assert output[-1] == ends[1]
