"""A draft that is a language model of its own, over gRPC: tokens go to it and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.integration.conftest import PROMPTS
from tests.integration.loopback import PAIR, complete, deployment
from transformers import AutoModelForCausalLM

from arborist.common.config import parse_config
from arborist.core.errors import MismatchError
from arborist.core.policy_settings import DRAFT_CALLS
from arborist.core.sampling import SamplingParams
from arborist.draft.any_draft import load_any_draft
from arborist.draft.tree_engine import TreeDraftEngine
from arborist.orchestrator.generation import GenerationRequest, SpeculationOptions

MAX_TOKENS = 24
SHAPES = (
    SpeculationOptions(policy="chain", depth=4, num_draft_tokens=4),
    SpeculationOptions(depth=3, top_k=4, num_draft_tokens=8),
    SpeculationOptions(policy="dynamic_depth"),
)


def load(folder: Path, target: Path = PAIR / "target") -> TreeDraftEngine:
    """A language-model draft of the golden target."""
    return load_any_draft(folder, target, device="cpu", dtype="float32", kv_capacity_tokens=8192)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden target with noise in its weights: near enough to be accepted now and then."""
    place = tmp_path_factory.mktemp("language_model")
    model = AutoModelForCausalLM.from_pretrained(PAIR / "target", dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.std() * torch.randn_like(parameter))
    model.save_pretrained(place)
    return place


@pytest.mark.parametrize("draft_calls", DRAFT_CALLS)
async def test_the_tokens_are_the_target_s(
    draft_calls, folder, target_engine, reference, monkeypatch
):
    """As a chain and as a tree, greedy and sampled, without any feature on the wire."""
    config = parse_config({"test": {"speculation": {"draft_calls": draft_calls}}})
    requests, sampled = [], []
    open_session = target_engine.open

    def note(session, request):
        requests.append(request)
        return open_session(session, request)

    monkeypatch.setattr(target_engine, "open", note)
    async with deployment(targets=[target_engine], drafts=[load(folder)], config=config) as running:
        for options in (*SHAPES, SpeculationOptions(enabled=False)):
            request = GenerationRequest(
                PROMPTS[0], MAX_TOKENS, ignore_eos=True, speculation=options
            )
            done = await complete(running, request)
            assert done.tokens == reference(PROMPTS[0], MAX_TOKENS)
            if options.enabled is not False:
                assert done.summary.speculation.rounds_without_draft == 0
                assert done.summary.speculation.accepted_tokens > 0
            drawn = replace(request, sampling=SamplingParams(1.0), seed=7)
            sampled.append((await complete(running, drawn)).tokens)
        await running.wait_idle()
    assert all(one == sampled[0] for one in sampled)
    assert {one.feature_spec for one in requests} == {None}


async def test_a_lost_draft_is_replaced_from_the_log(folder, target_engine, reference, monkeypatch):
    """Another worker of the same model takes over in the middle of an output."""
    engines, opened = [load(folder), load(folder)], []
    for engine in engines:

        def note(session, request, open_session=engine.open, engine=engine):
            opened.append(engine)
            return open_session(session, request)

        monkeypatch.setattr(engine, "open", note)
    tokens: list[int] = []
    stopped = False
    async with deployment(targets=[target_engine], drafts=engines) as running:
        generation = running.controller.generate(GenerationRequest(PROMPTS[0], 60, ignore_eos=True))
        async for event in generation:
            tokens += getattr(event, "token_ids", ())
            if len(tokens) > 5 and not stopped:
                stopped = True
                await next(one for one in running.drafts if one.worker.info.num_sessions).stop()
    assert tokens == reference(PROMPTS[0], 60)
    assert len(opened) == 2
    assert opened[0] is not opened[1]


async def test_a_draft_started_with_another_target_is_refused(tmp_path, folder, target_engine):
    """Its worker says whose tokens it was checked against."""
    other = AutoModelForCausalLM.from_pretrained(PAIR / "target", dtype=torch.float32)
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(MismatchError, match="embedding digest differs"):
        async with deployment(
            targets=[target_engine], drafts=[load(folder, tmp_path / "other")], check_fit=True
        ):
            pass
