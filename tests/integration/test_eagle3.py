"""An EAGLE-3 head over gRPC: its layers' features cross the wire once and are read back."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.integration.loopback import complete, deployment, serve_draft, until

from arborist.core.engine import DraftEngine, TargetEngine
from arborist.draft.engine import load_draft
from arborist.orchestrator.generation import (
    DeliveredRound,
    GenerationRequest,
    SpeculationOptions,
)
from arborist.target.engine import load_target

PAIR = Path(__file__).resolve().parents[1] / "golden" / "eagle3"
RECORDED = json.loads((PAIR / "greedy_k8_d5_t24.json").read_text())["cases"]
OPTIONS = SpeculationOptions(depth=6, top_k=8, num_draft_tokens=23)


def make_draft() -> DraftEngine:
    """The head of the recorded run."""
    return load_draft(
        PAIR / "eagle_head", PAIR / "target", device="cpu", dtype="float32", kv_capacity_tokens=4096
    )


@pytest.fixture(scope="module")
def target_engine() -> TargetEngine:
    """The target of the recorded run."""
    return load_target(PAIR / "target", device="cpu", dtype="float32", kv_capacity_tokens=4096)


def request(case: dict[str, Any], max_tokens: int) -> GenerationRequest:
    """A recorded prompt."""
    return GenerationRequest(
        tuple(case["prompt"]), max_tokens, ignore_eos=True, speculation=OPTIONS
    )


async def test_recorded_rounds_of_the_official_code_come_back(target_engine: TargetEngine) -> None:
    """Tokens and what every round accepted are those of the official code."""
    async with deployment(targets=[target_engine], drafts=[make_draft()]) as running:
        for case in RECORDED[::10]:
            done = await complete(running, request(case, len(case["output"])))
            accepted = [one.accepted_count for one in done.rounds[1:-1]]
            recorded = [one["accept_length"] for one in case["rounds"]]
            assert done.tokens == case["output"]
            assert accepted == recorded[: len(accepted)]
            assert done.summary.speculation.rounds_without_draft == 0
        await running.wait_idle()


async def test_a_draft_that_comes_back_is_rebuilt_from_layer_features(
    target_engine: TargetEngine,
) -> None:
    """A new draft at the old address reads the layers' features back and accepts as before."""
    case = RECORDED[0]
    async with deployment(targets=[target_engine], drafts=[make_draft()]) as running:
        before = await complete(running, request(case, 120))
        rounds: list[DeliveredRound] = []
        async for event in running.controller.generate(request(case, 120)):
            if isinstance(event, DeliveredRound):
                rounds.append(event)
                if event.round_index == 2:
                    port = int(running.drafts[0].address.rpartition(":")[2])
                    await running.drafts[0].stop()
                    running.drafts[0] = await serve_draft(make_draft(), port=port)
                    await until(lambda: running.controller.workers.drafts)
        await running.wait_idle()
        await running.drafts[0].stop()
    assert [token for one in rounds for token in one.token_ids] == before.tokens
    assert any(one.num_draft_tokens == 0 for one in rounds[1:])
    assert any(one.accepted_count > 2 for one in rounds[-4:])
