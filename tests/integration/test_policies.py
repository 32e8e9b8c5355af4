"""A request's policy over gRPC: the same tokens, another tree."""

import pytest
from tests.integration.conftest import PROMPTS
from tests.integration.loopback import complete, deployment

from arborist.common.config import parse_config
from arborist.core.errors import InvalidArgumentError
from arborist.orchestrator.generation import GenerationRequest, SpeculationOptions

MAX_TOKENS = 24
# What each policy verifies: (nodes, levels) of its full tree; None where it depends on the text.
TREES = {
    "eagle2": (15, 3),
    "eagle1_static": (25, 5),
    "chain": (3, 3),
    "dynamic_depth": None,
    "ngram": None,
    "eagle2_no_value": (15, 3),
    "eagle2_no_rerank": (15, 2),
}


async def test_each_policy_drafts_its_own_tree_and_changes_no_token(
    target_engine, draft_engine, reference
):
    """Static rows, one row and rows by score all pass the wire; the text is `generate`'s."""
    prompt = PROMPTS[0]
    async with deployment(targets=[target_engine], drafts=[draft_engine]) as running:
        for policy, tree in TREES.items():
            request = GenerationRequest(
                prompt, MAX_TOKENS, ignore_eos=True, speculation=SpeculationOptions(policy=policy)
            )
            done = await complete(running, request)
            assert done.tokens == reference(prompt, MAX_TOKENS)
            assert done.summary.speculation.rounds_without_draft == 0
            if tree is not None:
                seen = {(one.num_draft_tokens, one.depth) for one in done.rounds[1:]}
                assert seen == {tree}, policy
        await running.wait_idle()


async def test_a_deployments_policy_holds_for_requests_that_name_none(target_engine, draft_engine):
    """Configured once; an unknown name of a request is refused before anything starts."""
    config = parse_config({"test": {"speculation": {"policy": "chain", "depth": 4}}})
    async with deployment(targets=[target_engine], drafts=[draft_engine], config=config) as running:
        request = GenerationRequest(PROMPTS[0], MAX_TOKENS, ignore_eos=True)
        done = await complete(running, request)
        assert {one.num_draft_tokens for one in done.rounds[1:]} == {4}
        unknown = GenerationRequest(
            PROMPTS[0], MAX_TOKENS, speculation=SpeculationOptions(policy="medusa")
        )
        with pytest.raises(InvalidArgumentError, match=r"speculation\.policy"):
            await complete(running, unknown)
        await running.wait_idle()
