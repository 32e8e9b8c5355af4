"""Constrained output over gRPC with an EAGLE head: the same JSON with any tree, or after a loss."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.integration.conftest import PROMPTS
from tests.integration.loopback import (
    PAIR,
    collect,
    complete,
    deployment,
    golden_draft,
    golden_target,
)
from tests.unit.api.tokenizers import byte_level_tokenizer

from arborist.core.engine import DraftEngine, TargetEngine
from arborist.core.errors import InvalidArgumentError
from arborist.core.sampling import SamplingParams
from arborist.orchestrator.generation import (
    DeliveredRound,
    GenerationRequest,
    SpeculationOptions,
    Summary,
)
from arborist.orchestrator.session import FinishReason

TOKENIZER = byte_level_tokenizer()
END = 0
SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 0, "maximum": 999},
        "end": {"enum": ["abc", "end", None]},
        "list": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["id", "end", "list"],
    "additionalProperties": False,
}
TREES = (
    SpeculationOptions(enabled=False),
    SpeculationOptions(),
    SpeculationOptions(depth=5, top_k=4, num_draft_tokens=20),
    SpeculationOptions(policy="ngram"),
)
SAMPLINGS = (SamplingParams(), SamplingParams(temperature=1.0, repetition_penalty=1.2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden target with a tokenizer and an end token."""
    folder = tmp_path_factory.mktemp("speaking") / "target"
    shutil.copytree(PAIR / "target", folder)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, "eos_token_id": END}))
    TOKENIZER._backend.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def target(folder: Path) -> TargetEngine:
    """Its engine."""
    return golden_target(folder)


@pytest.fixture(scope="module")
def draft(folder: Path) -> DraftEngine:
    """The golden head, which knows nothing of schemas."""
    return golden_draft(folder)


def request(schema: object = SCHEMA, max_tokens: int = 120, **more: Any) -> GenerationRequest:
    """A request for JSON."""
    return GenerationRequest(PROMPTS[0], max_tokens, json_schema=json.dumps(schema), **more)


async def test_every_tree_gives_the_same_json(target: TargetEngine, draft: DraftEngine) -> None:
    """Greedy and seeded; whole outputs fit the schema, and some drafts were right."""
    accepted = whole = 0
    async with deployment(targets=[target], drafts=[draft]) as running:
        for sampling in SAMPLINGS:
            for seed in (1, 2):
                done = [
                    await complete(running, request(sampling=sampling, seed=seed, speculation=tree))
                    for tree in TREES
                ]
                tokens = done[0].tokens
                assert all(one.tokens == tokens for one in done)
                reasons = {one.summary.finish_reason for one in done}
                assert reasons == {FinishReason.EOS if tokens[-1] == END else FinishReason.LENGTH}
                accepted += sum(one.summary.speculation.accepted_tokens for one in done)
                if tokens[-1] == END:
                    jsonschema.validate(json.loads(TOKENIZER.decode(tokens)), SCHEMA)
                    whole += 1
        await running.wait_idle()
    assert accepted > 0
    assert whole > 0


async def test_max_tokens_cuts_an_output_and_says_so(
    target: TargetEngine, draft: DraftEngine
) -> None:
    """What is there is the beginning of the whole output."""
    asked = {"sampling": SamplingParams(temperature=1.0), "seed": 1}
    async with deployment(targets=[target], drafts=[draft]) as running:
        whole = await complete(running, request(**asked))
        cut = await complete(running, request(max_tokens=7, **asked))
    assert cut.tokens == whole.tokens[:7]
    assert cut.summary.finish_reason is FinishReason.LENGTH


async def test_a_lost_target_changes_nothing(folder: Path) -> None:
    """Another target takes the committed tokens and goes on inside the same document."""
    engines = [golden_target(folder) for _ in range(2)]
    asked = request(sampling=SamplingParams(temperature=1.0), seed=2)
    async with deployment(targets=engines, drafts=[]) as running:
        expected = (await complete(running, asked)).tokens
        generation = running.controller.generate(asked)
        for _ in range(4):
            await anext(generation)
        serving = next(one for one in running.targets if one.worker.info.num_sessions)
        await serving.stop()
        rest = [event async for event in generation]
        await generation.aclose()
    seen = [token for one in rest if isinstance(one, DeliveredRound) for token in one.token_ids]
    assert seen == expected[-len(seen) :]
    assert isinstance(rest[-1], Summary)
    assert rest[-1].completion_tokens == len(expected)


async def test_a_bad_schema_is_refused_and_delays_nobody(
    target: TargetEngine, draft: DraftEngine
) -> None:
    """INVALID_ARGUMENT with the reason, while others go on; nothing is left of it."""
    endless = {"allOf": [{"type": "integer", "multipleOf": one} for one in (7, 11, 13, 17, 19, 23)]}
    async with deployment(targets=[target], drafts=[draft]) as running:
        for schema, reason in (
            ({"not": {}}, "Unimplemented keys"),
            (endless, "more than 0.5 s to compile"),
        ):
            refused = asyncio.ensure_future(complete(running, request(schema)))
            free = GenerationRequest(PROMPTS[1], 10)
            assert len((await complete(running, free)).tokens) <= 10
            with pytest.raises(InvalidArgumentError) as caught:
                await refused
            assert caught.value.metadata["field"] == "response_format"
            assert reason in caught.value.message
        await running.wait_idle()
        assert running.controller.load() == (0, 0)


async def test_a_target_without_tokenizer_refuses() -> None:
    """By the field's name, at once."""
    async with deployment(targets=[golden_target()], drafts=[]) as running:
        with pytest.raises(InvalidArgumentError, match=r"response_format.*no tokenizer"):
            await complete(running, request())
        await running.wait_idle()


async def test_leaving_while_a_schema_compiles_leaves_nothing(target: TargetEngine) -> None:
    """A client that goes away frees its place; the worker goes on."""
    slow = {"allOf": [{"type": "integer", "multipleOf": one} for one in (7, 11, 13, 17, 19, 29)]}
    async with deployment(targets=[target], drafts=[]) as running:
        generation = running.controller.generate(request(slow))
        await anext(generation)
        await asyncio.sleep(0.05)
        await generation.aclose()
        await running.wait_idle()
        done = await collect(running.controller.generate(request()))
    assert done.tokens
