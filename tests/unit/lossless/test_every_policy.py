"""Every policy says what the target says: the same tokens as plain decoding, greedy and seeded.

In process over the golden pair, with the decode loop that serves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from arborist.cli.local import LocalModel
from arborist.common.config import load_config
from arborist.core.errors import InvalidArgumentError
from arborist.core.policy_settings import POLICY_NAMES, TREE_POLICY_NAMES
from arborist.draft.any_draft import load_any_draft
from arborist.draft.engine import EagleDraftEngine, load_draft
from arborist.draft.tree_engine import TreeDraftEngine
from arborist.orchestrator.api.incoming import IncomingRequest, TokenPrompt
from arborist.orchestrator.generation import SpeculationOptions
from arborist.orchestrator.round import Round
from arborist.target.engine import HfTargetEngine, load_target

PAIR = Path(__file__).resolve().parents[2] / "golden" / "eagle2"
# After this prompt the golden target repeats itself, which is what a lookup needs.
REPEATING = (220, 7) * 6
PROMPTS = [
    tuple(case["prompt"])
    for case in json.loads((PAIR / "greedy_k4_d3_t8.json").read_text())["cases"][:2]
]
PROMPTS.append(REPEATING)
MAX_TOKENS = 40
# Any order will do for a list of "frequent" ids.
FREQUENT = list(range(510, -1, -2))
PLAIN = SpeculationOptions(enabled=False)
BLIND = {"speculation.noise_aware": False}
SIZES: list[dict[str, int]] = [
    {},
    {"depth": 1, "top_k": 1, "num_draft_tokens": 1},
    {"depth": 6, "top_k": 3, "num_draft_tokens": 18},
]
SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 7},
    {"temperature": 1.5, "seed": 2**63 + 5},
]


PROCESSED: dict[str, Any] = {
    "temperature": 0.4,
    "seed": 11,
    "repetition_penalty": 0.95,
    # Rewards: a lookup needs repetition.
    "presence_penalty": -0.4,
    "frequency_penalty": -0.2,
    "logit_bias": {7: 1.5, 220: -1.0},
    "num_logprobs": 1,
}


@pytest.fixture(scope="module")
def engines() -> tuple[HfTargetEngine, EagleDraftEngine]:
    """The golden pair, loaded once."""
    target = load_target(PAIR / "target", device="cpu", dtype="float32", kv_capacity_tokens=1024)
    draft = load_draft(
        PAIR / "eagle_head", PAIR / "target", device="cpu", dtype="float32", kv_capacity_tokens=1024
    )
    return target, draft


@pytest.fixture(scope="module")
def restricted() -> EagleDraftEngine:
    """The golden head with half of the vocabulary."""
    return load_draft(
        PAIR / "eagle_head",
        PAIR / "target",
        device="cpu",
        dtype="float32",
        kv_capacity_tokens=1024,
        token_ids=FREQUENT,
    )


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> TreeDraftEngine:
    """A language model near the target, but not it: the target with noise in its weights."""
    folder = tmp_path_factory.mktemp("language_model")
    model = AutoModelForCausalLM.from_pretrained(PAIR / "target", dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.std() * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return load_any_draft(
        folder, PAIR / "target", device="cpu", dtype="float32", kv_capacity_tokens=1024
    )


Engines = tuple[HfTargetEngine, TreeDraftEngine]


def decode(
    engines: Engines, prompt: tuple[int, ...], options: SpeculationOptions, **more: Any
) -> tuple[tuple[int, ...], list[Round]]:
    """Decodes a prompt; returns the output and the rounds after the prefill."""
    config = load_config(flags=more.pop("flags", {}))
    rounds: list[Round] = []
    request = IncomingRequest(
        TokenPrompt(prompt), max_tokens=MAX_TOKENS, ignore_eos=True, speculation=options, **more
    )
    done = LocalModel(*engines, None, config).complete(request, on_round=rounds.append)
    return done.token_ids, rounds[1:]


@pytest.fixture(scope="module")
def plain(engines: Engines) -> dict[tuple[int, int], tuple[int, ...]]:
    """What plain decoding says for every prompt and sampling."""
    return {
        (i, j): decode(engines, prompt, PLAIN, **sampling)[0]
        for i, prompt in enumerate(PROMPTS)
        for j, sampling in enumerate(SAMPLINGS)
    }


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_a_policy_never_changes_a_token(
    engines: Engines, plain: dict[tuple[int, int], tuple[int, ...]], name: str
) -> None:
    """Greedy equals plain decoding and a seed fixes the output, for every size of the tree."""
    accepted = 0
    for (i, j), expected in plain.items():
        for sizes in SIZES:
            options = SpeculationOptions(policy=name, **sizes)
            output, rounds = decode(engines, PROMPTS[i], options, **SAMPLINGS[j])
            assert output == expected
            assert all(one.speculated for one in rounds)
            accepted += sum(one.accepted_count for one in rounds)
    assert accepted > 0


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_penalties_and_logprobs_are_those_of_plain_decoding(engines: Engines, name: str) -> None:
    """Every policy's trees are accepted by processed logits and reported by raw ones."""
    accepted = 0
    for prompt in PROMPTS[1:]:
        expected, one_by_one = decode(engines, prompt, PLAIN, **PROCESSED)
        output, rounds = decode(engines, prompt, SpeculationOptions(policy=name), **PROCESSED)
        assert output == expected
        accepted += sum(one.accepted_count for one in rounds)
        want = [one for round_ in one_by_one for one in round_.logprobs]
        got = [one for round_ in rounds for one in round_.logprobs]
        assert [one.token_id for one in got] == [one.token_id for one in want]
        assert [one.logprob for one in got] == pytest.approx(
            [one.logprob for one in want], abs=1e-4
        )
    assert accepted > 0


def test_a_static_tree_has_its_own_size_unless_the_request_says_less(engines: Engines) -> None:
    """25 nodes in 5 levels by default; a request's sizes cut it."""
    _, rounds = decode(engines, PROMPTS[0], SpeculationOptions(policy="eagle1_static"))
    assert {(one.num_draft_tokens, one.depth) for one in rounds} == {(25, 5)}
    less = SpeculationOptions(policy="eagle1_static", depth=3, num_draft_tokens=15)
    _, rounds = decode(engines, PROMPTS[0], less)
    assert {(one.num_draft_tokens, one.depth) for one in rounds} == {(15, 3)}


def test_the_deployment_names_the_policy_of_requests_that_do_not(
    engines: Engines, tmp_path: Path
) -> None:
    """Its own static tree comes from a file; a request may still ask for another policy."""
    file = tmp_path / "tree.json"
    file.write_text("[[0], [1], [0, 0], [0, 0, 0]]")
    flags = {"speculation.policy": "eagle1_static", "speculation.tree_file": file}
    _, rounds = decode(engines, PROMPTS[0], SpeculationOptions(), flags=flags)
    assert {(one.num_draft_tokens, one.depth) for one in rounds} == {(4, 3)}
    _, rounds = decode(engines, PROMPTS[0], SpeculationOptions(policy="chain"), flags=flags)
    assert {(one.num_draft_tokens, one.depth) for one in rounds} == {(3, 3)}


def test_dynamic_depth_drafts_less_deep_the_higher_its_threshold(engines: Engines) -> None:
    """At 0 one level is all; far below every level is drafted; in between depths differ."""
    depths: list[set[int]] = []
    for threshold in (0.0, -1.5, -100.0):
        flags = {"speculation.min_frontier_logprob": threshold, "speculation.depth": 6}
        options = SpeculationOptions(policy="dynamic_depth")
        _, rounds = decode(engines, PROMPTS[0], options, flags=flags)
        depths.append({one.depth for one in rounds})
    assert depths[0] == {1}
    assert len(depths[1]) > 1
    assert depths[2] == {6}


def test_ngram_lookup_needs_no_draft(engines: Engines) -> None:
    """A repeating text is drafted from, with no head loaded and none asked for."""
    expected, _ = decode(engines, REPEATING, PLAIN)
    options = SpeculationOptions(enabled=True, policy="ngram")
    rounds: list[Round] = []
    request = IncomingRequest(
        TokenPrompt(REPEATING), max_tokens=MAX_TOKENS, ignore_eos=True, speculation=options
    )
    model = LocalModel(engines[0], None, None, load_config())
    done = model.complete(request, on_round=rounds.append)
    assert done.token_ids == expected
    assert all(one.speculated for one in rounds[1:])
    assert sum(one.accepted_count for one in rounds) > 0
    assert not any(phase.name.startswith("draft.") for one in rounds for phase in one.phases)


@pytest.mark.parametrize("name", TREE_POLICY_NAMES)
def test_a_smaller_draft_vocabulary_never_changes_a_token(
    engines: Engines,
    restricted: EagleDraftEngine,
    plain: dict[tuple[int, int], tuple[int, ...]],
    name: str,
) -> None:
    """A head that drafts half of the ids (FR-Spec): the same tokens, only drafted ids differ."""
    allowed = set(FREQUENT)
    for (i, j), expected in plain.items():
        output, rounds = decode(
            (engines[0], restricted), PROMPTS[i], SpeculationOptions(policy=name), **SAMPLINGS[j]
        )
        assert output == expected
        assert all(one.speculated and one.num_draft_tokens for one in rounds)
        assert {token for one in rounds for token in one.tree.tokens} <= allowed


@pytest.mark.parametrize("name", ["eagle2", "eagle1_static", "dynamic_depth"])
def test_drafting_without_the_noise_never_changes_a_token(
    engines: Engines, plain: dict[tuple[int, int], tuple[int, ...]], name: str
) -> None:
    """Every other test here drafts with the target's noise; without it the tokens are the same."""
    options = SpeculationOptions(policy=name, **SIZES[2])
    for j, sampling in enumerate(SAMPLINGS):
        aimed, rounds = decode(engines, PROMPTS[0], options, **sampling)
        blind, others = decode(engines, PROMPTS[0], options, flags=BLIND, **sampling)
        assert aimed == blind == plain[0, j]
        # The same trees without noise, others with it.
        same = [one.tree for one in rounds] == [one.tree for one in others]
        assert same == ("temperature" not in sampling)


@pytest.mark.parametrize("kind", ["head", "restricted", "language model"])
def test_aimed_children_are_drawn_where_noise_decides(
    engines: Engines, restricted: EagleDraftEngine, language_model: TreeDraftEngine, kind: str
) -> None:
    """At temperature 100 the noise is nearly all: a draft that has its positions right knows it."""
    drafts = {"head": engines[1], "restricted": restricted, "language model": language_model}
    pair = (engines[0], drafts[kind])
    options = SpeculationOptions(policy="chain", depth=4)
    accepted = {True: 0, False: 0}
    drafted = {True: 0, False: 0}
    for seed in range(3):
        sampling = {"temperature": 100.0, "seed": seed}
        for aware in (True, False):
            flags = {} if aware else BLIND
            _, rounds = decode(pair, PROMPTS[0], options, flags=flags, **sampling)
            accepted[aware] += sum(one.accepted_count for one in rounds)
            drafted[aware] += sum(one.num_draft_tokens for one in rounds)
    assert accepted[False] <= 0.1 * drafted[False]
    # Half of the drawn tokens are outside the restricted vocabulary.
    assert accepted[True] >= (0.15 if kind == "restricted" else 0.8) * drafted[True]


@pytest.mark.parametrize("name", TREE_POLICY_NAMES)
def test_a_language_model_draft_never_changes_a_token(
    engines: Engines,
    language_model: TreeDraftEngine,
    plain: dict[tuple[int, int], tuple[int, ...]],
    name: str,
) -> None:
    """A draft of its own, as a chain and as any tree: the same tokens, some of them drafted."""
    accepted = rejected = 0
    options = SpeculationOptions(policy=name, **SIZES[-1])
    for (i, j), expected in plain.items():
        if j == 1:
            continue
        drafted_by = (engines[0], language_model)
        output, rounds = decode(drafted_by, PROMPTS[i], options, **SAMPLINGS[j])
        assert output == expected
        assert all(one.speculated for one in rounds)
        accepted += sum(one.accepted_count for one in rounds)
        rejected += sum(one.num_draft_tokens - one.accepted_count for one in rounds)
    assert accepted > 0
    assert rejected > 0
    assert language_model.kv_reserved_tokens == 0


def test_an_unknown_policy_starts_nothing(engines: Engines) -> None:
    """The message names field, value and the policies there are."""
    with pytest.raises(InvalidArgumentError, match=r"speculation\.policy = medusa: .*eagle2"):
        decode(engines, PROMPTS[0], SpeculationOptions(policy="medusa"))
    assert engines[0].kv_reserved_tokens == 0
