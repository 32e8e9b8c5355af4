"""What sessions that begin like earlier ones compute again, by whom; all else stays the same.

The fake draft checks every pair it is given against the log.
"""

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.orchestrator.decoding import MAX_TOKENS, PROMPT, decode, make_decoder
from tests.unit.orchestrator.fake_workers import (
    FakeDraft,
    FakeLanguageModelDraft,
    FakeTarget,
    FakeWorkers,
    Faults,
    plain_decode,
)
from tests.unit.orchestrator.test_resting_draft import ScriptedSizer

from arborist.core.errors import InvalidArgumentError, SessionFailedError, UnavailableError
from arborist.core.sampling import SamplingParams

DRAFTS = pytest.mark.parametrize("draft_type", [FakeDraft, FakeLanguageModelDraft])
LONG = [2 + (7 * at) % 40 for at in range(30)]


async def run(workers: FakeWorkers, prompt: list[int], **more: Any) -> list[int]:
    """Decodes a session of tenant "t" and checks that it says what it says alone."""
    more = {"tenant": "t", **more}
    decoder, session = make_decoder(workers, prompt=prompt, **more)
    rounds = await decode(decoder)
    assert session.output == plain_decode(prompt, MAX_TOKENS, SamplingParams())
    if workers.live_draft is not None:
        assert all(one.speculated for one in rounds if one.round_index >= 0)
    return session.output


@DRAFTS
@pytest.mark.parametrize("draft_calls", ["level", "tree"])
async def test_a_chat_computes_every_prompt_token_once(draft_type, draft_calls) -> None:
    """Turn after turn the target prefills, and the draft reads, only what is new."""
    target, draft = FakeTarget(), draft_type(0.7)
    workers = FakeWorkers([target], draft)
    log, fresh = list(LONG), len(LONG)
    for turn in range(5):
        before, read_before = target.prefilled_tokens, draft.num_appended
        output = await run(workers, log, draft_calls=draft_calls)
        # A turn's last token was computed only if a round went past the limit.
        assert 0 <= target.prefilled_tokens - before - fresh <= (turn > 0)
        assert draft.num_appended - read_before <= fresh + len(output) + 2
        new = [3 + turn, 4, 5]
        log, fresh = [*log, *output, *new], len(new)
    assert target.sessions == draft.sessions == {}


@DRAFTS
async def test_a_draft_that_lacks_what_the_target_has_reads_it_from_the_target(draft_type) -> None:
    """A head is fed from the feature store, a language model from the log."""
    target = FakeTarget()
    await run(FakeWorkers([target], draft_type(0.7)), LONG)
    fresh = draft_type(0.7)
    await run(FakeWorkers([target], fresh), LONG)
    assert target.prefilled_tokens == len(LONG) + 1
    assert fresh.num_appended >= len(LONG)


async def test_a_draft_that_lacks_what_the_target_has_holds_up_no_first_token() -> None:
    """It is given that in the first round, and all that came with the prompt behind it."""
    target, first_token = FakeTarget(), asyncio.Event()
    await run(FakeWorkers([target], FakeDraft(0.7)), LONG)

    async def read_late(command: str) -> None:
        await asyncio.sleep(0)
        if command == "target.read_features":
            await first_token.wait()

    target.hook = read_late
    prompt = [*LONG, *(3 + (5 * at) % 40 for at in range(20))]
    decoder, session = make_decoder(
        FakeWorkers([target], FakeDraft(0.7)), prompt=prompt, tenant="t"
    )
    rounds = decoder.run()
    async with asyncio.timeout(5.0):
        await anext(rounds)
    first_token.set()
    assert all([one.speculated async for one in rounds])
    decoder.close()
    assert session.output == plain_decode(prompt, MAX_TOKENS, SamplingParams())


@DRAFTS
@pytest.mark.parametrize("common", [1, 2, 8, 17, 29, 30])
async def test_a_target_that_lacks_what_the_draft_has_computes_it(draft_type, common) -> None:
    """Whatever part of the prompt the draft knows, it is sent the rest and no more."""
    draft = draft_type(0.7)
    await run(FakeWorkers([FakeTarget()], draft), LONG)
    before = draft.num_appended
    prompt = LONG[:common] + [41] * (30 - common)
    output = await run(FakeWorkers([FakeTarget()], draft), prompt)
    held = common if draft_type is FakeLanguageModelDraft else common - 1
    assert draft.num_appended - before <= len(prompt) + len(output) - held + 1


@pytest.mark.parametrize(("own", "tenant"), [(None, None), ("t", "other"), ("t", None)])
async def test_nothing_is_shared_with_other_tenants(own, tenant) -> None:
    """Other tenants, and sessions of none, compute the same prompt again."""
    target, draft = FakeTarget(), FakeDraft(0.7)
    workers = FakeWorkers([target], draft)
    await run(workers, LONG, tenant=own)
    await run(workers, LONG, tenant=tenant)
    assert target.prefilled_tokens == 2 * len(LONG)


async def test_drafts_of_another_target_share_nothing() -> None:
    """Pairs hold features of one model: under another target's digest the draft reads anew."""
    draft = FakeDraft(0.7)
    await run(FakeWorkers([FakeTarget()], draft), LONG)
    other, before = FakeTarget(), draft.num_appended
    other.info = replace(other.info, digest="another")
    await run(FakeWorkers([other], draft), LONG)
    assert draft.num_appended - before >= len(LONG)


@DRAFTS
async def test_a_lost_target_is_replaced_from_what_another_one_knows(draft_type) -> None:
    """A session that moves prefills what the new target has not seen, and goes on the same."""
    second = FakeTarget()
    await run(FakeWorkers([second], None), LONG, shape=None)
    for at in itertools.count(4, 3):
        faults = Faults(at, ("target.verify",), UnavailableError)
        first, draft = FakeTarget(faults), draft_type(0.7)
        before = second.prefilled_tokens
        decoder, session = make_decoder(
            FakeWorkers([first, second], draft), prompt=LONG, tenant="t"
        )
        await decode(decoder)
        assert session.output == plain_decode(LONG, MAX_TOKENS, SamplingParams())
        if len(faults.seen) <= at:
            break
        assert second.prefilled_tokens - before < MAX_TOKENS
    assert at > 4


@pytest.mark.parametrize("error", [UnavailableError, InvalidArgumentError, SessionFailedError])
async def test_features_that_cannot_be_read_cost_the_draft_alone(error) -> None:
    """The output is the same, first without a draft and then with one again."""
    target = FakeTarget()
    await run(FakeWorkers([target], FakeDraft(0.7)), LONG)

    def planned(message: str) -> Exception:
        return error(message, 0, "none") if error is InvalidArgumentError else error(message)

    target.hook = Faults(0, ("target.read_features",), planned)  # type: ignore[arg-type]
    draft = FakeDraft(0.7)
    decoder, session = make_decoder(FakeWorkers([target], draft), prompt=LONG, tenant="t")
    rounds = await decode(decoder)
    assert session.output == plain_decode(LONG, MAX_TOKENS, SamplingParams())
    assert not rounds[1].speculated
    assert any(one.speculated for one in rounds)
    assert draft.sessions == {}


async def test_a_short_prompt_is_named_whole_but_for_its_last_token() -> None:
    """Even a prompt that is known entirely has one token computed: it gives the root."""
    target = FakeTarget()
    workers = FakeWorkers([target], FakeDraft(0.7))
    await run(workers, PROMPT)
    await run(workers, PROMPT)
    assert target.prefilled_tokens == len(PROMPT) + 1


@DRAFTS
@pytest.mark.parametrize("pattern", [[False, True], [False] * 5 + [True] * 2, [True] * 3 + [False]])
@pytest.mark.parametrize("knows", ["target", "draft", "both"])
async def test_a_draft_that_rests_is_fed_from_where_it_knows_the_prompt(
    draft_type, pattern, knows
) -> None:
    """Whoever knows the prompt already: the fake draft gets every pair once, in order."""
    target, draft = FakeTarget(), draft_type(0.8)
    await run(FakeWorkers([target], draft), LONG)
    workers = FakeWorkers(
        [FakeTarget() if knows == "draft" else target],
        draft_type(0.8) if knows == "target" else draft,
    )
    sizer = ScriptedSizer(pattern)
    decoder, session = make_decoder(workers, prompt=LONG, tenant="t", sizer=sizer)
    await decode(decoder)
    assert session.output == plain_decode(LONG, MAX_TOKENS, SamplingParams())
    for number, round_ in enumerate(sizer.rounds):
        assert round_.speculated == pattern[number % len(pattern)]
