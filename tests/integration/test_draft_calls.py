"""A tree in one call to the draft: the same rounds and tokens over gRPC, whatever happens to it."""

import asyncio
from concurrent.futures import Future

import pytest
from tests.integration.conftest import PROMPTS
from tests.integration.loopback import (
    collect,
    complete,
    deployment,
    golden_draft,
    serve_draft,
    until,
)

from arborist.common import draft_wire
from arborist.common.config import parse_config
from arborist.core.engine import Expand, ExpandTree
from arborist.core.errors import UnimplementedError
from arborist.core.policy_settings import DRAFT_CALLS
from arborist.core.sampling import SamplingParams
from arborist.draft.run_ahead import RunAheadDraft
from arborist.orchestrator.generation import (
    DeliveredRound,
    GenerationRequest,
    SpeculationOptions,
    Summary,
)

MAX_TOKENS = 24
TREE = parse_config({"test": {"speculation": {"draft_calls": "tree"}}})
SHAPES = (
    SpeculationOptions(),
    SpeculationOptions(depth=1, top_k=4, num_draft_tokens=4),
    SpeculationOptions(depth=2, top_k=3, num_draft_tokens=7),
    SpeculationOptions(depth=16, top_k=2, num_draft_tokens=20),
    SpeculationOptions(policy="chain"),
    SpeculationOptions(policy="eagle2_no_value"),
    SpeculationOptions(policy="eagle2_no_rerank"),
    SpeculationOptions(policy="dynamic_depth"),
    SpeculationOptions(policy="eagle1_static"),
    SpeculationOptions(policy="ngram"),
)


def request(prompt=PROMPTS[0], max_tokens=MAX_TOKENS, **more) -> GenerationRequest:
    """A request that runs to its limit."""
    return GenerationRequest(prompt, max_tokens, ignore_eos=True, **more)


def counted(monkeypatch, engine) -> list[object]:
    """Notes all work that an engine is given from now on."""
    seen: list[object] = []
    run = engine.run

    def note(batch):
        seen.extend(batch)
        return run(batch)

    monkeypatch.setattr(engine, "run", note)
    return seen


async def test_rounds_are_those_of_level_by_level(target_engine, draft_engine, reference):
    """For every shape and policy, greedy and sampled: what is committed in every round."""
    rounds: dict[str, list[tuple[tuple[int, ...], int, int]]] = {}
    for calls in DRAFT_CALLS:
        config = parse_config({"test": {"speculation": {"draft_calls": calls}}})
        rounds[calls] = []
        async with deployment(
            targets=[target_engine], drafts=[draft_engine], config=config
        ) as running:
            for options in SHAPES:
                done = await complete(running, request(speculation=options))
                assert done.tokens == reference(PROMPTS[0], MAX_TOKENS)
                assert done.summary.speculation.rounds_without_draft == 0
                drawn = await complete(
                    running, request(speculation=options, sampling=SamplingParams(1.0), seed=7)
                )
                rounds[calls] += [
                    (one.token_ids, one.num_draft_tokens, one.depth)
                    for one in (*done.rounds, *drawn.rounds)
                ]
            await running.wait_idle()
    assert rounds["level"] == rounds["tree"]


@pytest.mark.parametrize("runs_ahead", [False, True])
async def test_the_draft_is_asked_once_a_round(target_engine, reference, monkeypatch, runs_ahead):
    """Policies that need nothing but the pool take one ExpandTree a round, the others Expands."""
    engine = golden_draft()
    draft = RunAheadDraft(engine) if runs_ahead else engine
    seen = counted(monkeypatch, draft)
    async with deployment(targets=[target_engine], drafts=[draft], config=TREE) as running:
        done = await complete(running, request())
        assert done.tokens == reference(PROMPTS[0], MAX_TOKENS)
        assert sum(isinstance(work, ExpandTree) for work in seen) == len(done.rounds) - 1
        assert not any(isinstance(work, Expand) for work in seen)
        seen.clear()
        await complete(running, request(speculation=SpeculationOptions(policy="dynamic_depth")))
        assert any(isinstance(work, Expand) for work in seen)
        assert not any(isinstance(work, ExpandTree) for work in seen)
        await running.wait_idle()


async def test_many_sessions_grow_their_trees_together(target_engine, draft_engine, reference):
    """Trees of several depths share forwards and do not disturb each other."""
    async with deployment(targets=[target_engine], drafts=[draft_engine], config=TREE) as running:
        requests = [
            request(prompt, speculation=SpeculationOptions(depth=depth, top_k=4))
            for prompt in PROMPTS
            for depth in (2, 4, 6)
        ]
        done = await asyncio.gather(*(complete(running, one) for one in requests))
        for asked, one in zip(requests, done, strict=True):
            assert one.tokens == reference(asked.prompt_token_ids, MAX_TOKENS)
            assert one.summary.speculation.rounds_without_draft == 0
        await running.wait_idle()


async def test_an_older_draft_is_asked_level_by_level(
    target_engine, draft_engine, reference, monkeypatch, caplog
):
    """One that knows no ExpandTree loses no round: it is asked once, said once, and goes on."""
    refused: list[object] = []

    def unknown(message, session):
        refused.append(message)
        raise UnimplementedError("expand_tree is reserved")

    monkeypatch.setattr(draft_wire, "_expand_tree", unknown)
    async with deployment(targets=[target_engine], drafts=[draft_engine], config=TREE) as running:
        for _ in range(2):
            done = await complete(running, request())
            assert done.tokens == reference(PROMPTS[0], MAX_TOKENS)
            assert done.summary.speculation.rounds_without_draft == 0
            assert all(one.num_draft_tokens > 0 for one in done.rounds[1:])
        assert len(refused) == 1
        await running.wait_idle()
        monkeypatch.undo()
        port = int(running.drafts[0].address.rpartition(":")[2])
        await running.drafts[0].stop()
        running.drafts[0] = await serve_draft(draft_engine, port=port)
        await until(lambda: any(one.grows_trees for one in running.controller.workers.drafts))
        await running.drafts[0].stop()
    assert caplog.text.count("level by level") == 1


async def test_a_draft_that_dies_in_a_tree_is_not_missed(target_engine, reference, monkeypatch):
    """It ends between an Extend and the pool: the tokens go on, without speculation."""
    draft = golden_draft()
    async with deployment(targets=[target_engine], drafts=[draft], config=TREE) as running:
        loop, run, calls = asyncio.get_running_loop(), draft.run, 0
        stopping: list[Future[None]] = []

        def dying(batch):
            nonlocal calls
            calls += any(isinstance(work, ExpandTree) for work in batch)
            if calls == 3 and not stopping:
                stop = running.drafts[0].server.grpc_server.stop(None)
                stopping.append(asyncio.run_coroutine_threadsafe(stop, loop))
                stopping[0].result(10.0)
            return run(batch)

        monkeypatch.setattr(draft, "run", dying)
        done = await collect(running.controller.generate(request(max_tokens=60)))
        assert stopping
    assert done.tokens == reference(PROMPTS[0], 60)
    assert done.summary.speculation.rounds_without_draft > 0
    assert done.rounds[1].num_draft_tokens > 0


async def test_a_draft_that_comes_back_grows_trees_again(target_engine, reference):
    """Rebuilt from the target's features, its first pair carries what is left of the text."""
    async with deployment(targets=[target_engine], drafts=[golden_draft()], config=TREE) as running:
        tokens: list[int] = []
        async for event in running.controller.generate(request(max_tokens=120)):
            if isinstance(event, DeliveredRound):
                tokens += event.token_ids
                last = event
                if event.round_index == 2:
                    port = int(running.drafts[0].address.rpartition(":")[2])
                    await running.drafts[0].stop()
                    running.drafts[0] = await serve_draft(golden_draft(), port=port)
                    await until(lambda: running.controller.workers.drafts)
            elif isinstance(event, Summary):
                summary = event
        await running.wait_idle()
        await running.drafts[0].stop()
    assert tokens == reference(PROMPTS[0], 120)
    assert summary.speculation.rounds_without_draft > 0
    assert last.num_draft_tokens > 0
