"""Engines called in process: a tree in one call is the tree of many."""

import pytest
from tests.fakes import FakeDraftEngine, FakeTargetEngine, continuation
from tests.unit.orchestrator.decoding import MAX_TOKENS, PROMPT, SHAPE, decode, make_decoder

from arborist.core.engine import ExpandTree
from arborist.core.errors import InvalidArgumentError
from arborist.core.policy_settings import DRAFT_CALLS
from arborist.orchestrator.local_links import FixedWorkers, LocalDraftLink, LocalTargetLink


@pytest.mark.parametrize("draft_calls", DRAFT_CALLS)
async def test_output_is_the_models_either_way(draft_calls):
    """Rounds are speculated to the full depth, and nothing stays behind."""
    target, draft = FakeTargetEngine(), FakeDraftEngine()
    workers = FixedWorkers(LocalTargetLink(target), LocalDraftLink(draft))
    decoder, session = make_decoder(workers, draft_calls=draft_calls)
    rounds = (await decode(decoder))[1:]
    assert session.output == continuation(PROMPT, MAX_TOKENS)
    assert all(one.speculated and one.depth == SHAPE.depth for one in rounds)
    assert target.kv_reserved_tokens == draft.kv_reserved_tokens == 0


async def test_a_tree_the_engine_refuses_costs_the_draft(monkeypatch):
    """The error of the second call is the pair's."""
    target, draft = FakeTargetEngine(), FakeDraftEngine()
    run = draft.run

    def refusing(batch):
        if isinstance(batch[0], ExpandTree):
            return [InvalidArgumentError("levels", 0, "1")]
        return run(batch)

    monkeypatch.setattr(draft, "run", refusing)
    workers = FixedWorkers(LocalTargetLink(target), LocalDraftLink(draft))
    decoder, session = make_decoder(workers, draft_calls="tree")
    rounds = await decode(decoder)
    assert session.output == continuation(PROMPT, MAX_TOKENS)
    assert not any(one.speculated for one in rounds)
