"""The decode loop says what the model says, whatever drafts, trees and faults do."""

import asyncio
from dataclasses import replace

import pytest
from tests.unit.orchestrator.decoding import MAX_TOKENS, PROMPT, SHAPE, decode, make_decoder
from tests.unit.orchestrator.fake_workers import (
    FakeDraft,
    FakeLanguageModelDraft,
    FakeTarget,
    FakeWorkers,
    Faults,
    hash_logprobs,
    plain_decode,
)

from arborist.core.errors import (
    DeadlineError,
    InvalidArgumentError,
    ResourceExhaustedError,
    SessionFailedError,
    StaleStampError,
    UnavailableError,
    UnknownSessionError,
)
from arborist.core.noise_aim import NoiseAim
from arborist.core.policy_settings import DRAFT_CALLS, DraftCalls
from arborist.core.pool import Pool
from arborist.core.sampling import SamplingParams
from arborist.core.shape import TreeShape
from arborist.orchestrator.session import FinishReason

GREEDY = SamplingParams()
EXPECTED = plain_decode(PROMPT, MAX_TOKENS, GREEDY)
DRAFTS = pytest.mark.parametrize("draft_type", [FakeDraft, FakeLanguageModelDraft])
SHAPES = [
    TreeShape(depth=1, top_k=1, num_draft_tokens=1),
    TreeShape(depth=5, top_k=1, num_draft_tokens=5),
    TreeShape(depth=2, top_k=8, num_draft_tokens=3),
    TreeShape(depth=6, top_k=4, num_draft_tokens=60),
]


@pytest.mark.parametrize("draft_calls", DRAFT_CALLS)
@pytest.mark.parametrize("accuracy", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@DRAFTS
async def test_output_is_the_models_for_any_draft_and_tree(
    draft_type, accuracy, shape, draft_calls
):
    """Neither the draft's kind and accuracy nor the tree's shape nor who grows it matters."""
    workers = FakeWorkers([FakeTarget()], draft_type(accuracy))
    decoder, session = make_decoder(workers, shape=shape, draft_calls=draft_calls)
    rounds = await decode(decoder)
    assert session.output == EXPECTED
    assert [token for one in rounds for token in one.tokens] == EXPECTED
    assert session.finish_reason is FinishReason.LENGTH


async def test_a_perfect_draft_saves_rounds_and_a_useless_one_does_not():
    """Acceptance comes from the draft: depth + 1 tokens a round at best, 1 at worst."""
    perfect, _ = make_decoder(FakeWorkers([FakeTarget()], FakeDraft(1.0)))
    useless, _ = make_decoder(FakeWorkers([FakeTarget()], FakeDraft(0.0)))
    assert len(await decode(perfect)) - 1 < (MAX_TOKENS - 1) / 2
    rounds = (await decode(useless))[1:]
    assert len(rounds) == MAX_TOKENS - 1
    assert all(one.accepted_count == 0 and one.speculated for one in rounds)


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
async def test_seeded_sampling_does_not_depend_on_the_draft(seed):
    """With a seed the output is the model's too, drafted for or not."""
    params = SamplingParams(temperature=1.0, seed=seed)
    expected = plain_decode(PROMPT, MAX_TOKENS, params)
    for draft in (None, FakeDraft(0.7), FakeDraft(0.7, params=params)):
        decoder, session = make_decoder(FakeWorkers([FakeTarget()], draft), sampling=params)
        await decode(decoder)
        assert session.output == expected


async def test_plain_decoding_asks_no_draft():
    """Without a policy the draft is left alone and every round yields one token."""
    draft = FakeDraft(1.0)
    decoder, session = make_decoder(FakeWorkers([FakeTarget()], draft), shape=None)
    rounds = await decode(decoder)
    assert session.output == EXPECTED
    assert draft.opened == 0
    assert all(len(one.tokens) == 1 for one in rounds)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 6, 7])
@DRAFTS
async def test_prompts_of_any_length_reach_the_draft_completely(draft_type, length):
    """Chunks and parts of a prompt give the draft every pair, in order, exactly once."""
    prompt = PROMPT[:length]
    decoder, session = make_decoder(FakeWorkers([FakeTarget()], draft_type(1.0)), prompt=prompt)
    rounds = await decode(decoder)
    assert session.output == plain_decode(prompt, MAX_TOKENS, GREEDY)
    assert all(one.speculated for one in rounds[1:])


async def test_nothing_follows_the_end_of_sequence():
    """An accepted path is cut after the first end-of-sequence token."""
    eos = EXPECTED[7]
    decoder, session = make_decoder(
        FakeWorkers([FakeTarget()], FakeDraft(1.0)), eos=frozenset([eos])
    )
    await decode(decoder)
    assert session.output == EXPECTED[: EXPECTED.index(eos) + 1]
    assert session.finish_reason is FinishReason.EOS


async def test_nothing_follows_a_stop_token():
    """It ends the output as an end-of-sequence token does, and says so."""
    stop = EXPECTED[7]
    decoder, session = make_decoder(
        FakeWorkers([FakeTarget()], FakeDraft(1.0)), stop_tokens=frozenset([stop])
    )
    rounds = await decode(decoder)
    assert session.output == EXPECTED[: EXPECTED.index(stop) + 1]
    assert rounds[-1].tokens[-1] == stop
    assert session.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("eos", [frozenset(), frozenset([1])])
async def test_min_tokens_holds_back_whatever_ends_the_output(eos):
    """The target is told the model's own end tokens, unless ignored, and the request's."""
    params = SamplingParams(min_tokens=10)
    stop = EXPECTED[3]
    ends = sorted({stop, *eos})
    expected = plain_decode(PROMPT, MAX_TOKENS, params, ends)
    target = FakeTarget()
    decoder, session = make_decoder(
        FakeWorkers([target], FakeDraft(1.0)),
        sampling=params,
        eos=eos,
        stop_tokens=frozenset([stop]),
    )
    rounds = decoder.run()
    await anext(rounds)
    assert target.sessions["s"].request.end_token_ids == tuple(ends)
    async for _ in rounds:
        pass
    decoder.close()
    assert session.output == expected[: len(session.output)]
    assert stop not in session.output[:10]


@pytest.mark.parametrize("num_logprobs", [None, 0, 3])
async def test_every_token_has_its_logprobs(num_logprobs):
    """Prefill, rounds, the last one cut: as many log-probs as tokens, or none at all."""
    decoder, session = make_decoder(
        FakeWorkers([FakeTarget()], FakeDraft(0.8)), num_logprobs=num_logprobs, max_tokens=11
    )
    rounds = await decode(decoder)
    got = [one for round_ in rounds for one in round_.logprobs]
    if num_logprobs is None:
        assert got == []
    else:
        prefixes = [PROMPT + EXPECTED[:at] for at in range(11)]
        assert got == [
            hash_logprobs(prefix, token, num_logprobs)
            for prefix, token in zip(prefixes, session.output, strict=True)
        ]
    assert all(len(one.logprobs) in (0, len(one.tokens)) for one in rounds)


@pytest.mark.parametrize("max_tokens", [1, 2, 5])
async def test_nothing_follows_the_limit(max_tokens):
    """The last round is cut at max_tokens."""
    decoder, session = make_decoder(
        FakeWorkers([FakeTarget()], FakeDraft(1.0)), max_tokens=max_tokens
    )
    await decode(decoder)
    assert session.output == EXPECTED[:max_tokens]


async def test_a_tree_in_one_call_is_the_tree_of_many():
    """Rounds, trees and what was accepted are the same; the draft is asked once a round."""
    rounds, commands = {}, {}
    for calls in DRAFT_CALLS:
        faults = Faults(kinds=("draft.ex",))
        decoder, _ = make_decoder(
            FakeWorkers([FakeTarget()], FakeDraft(0.6, faults)), draft_calls=calls
        )
        rounds[calls] = (await decode(decoder))[1:]
        commands[calls] = set(faults.seen)
    for level, tree in zip(rounds["level"], rounds["tree"], strict=True):
        assert (level.tree, level.tokens, level.depth) == (tree.tree, tree.tokens, tree.depth)
        names = [phase.name for phase in level.phases]
        assert [phase.name for phase in tree.phases] == names
        assert sum(phase.same_call for phase in tree.phases) == SHAPE.depth - 2
    assert commands["level"] == {"draft.extend", "draft.expand"}
    assert commands["tree"] == {"draft.extend", "draft.expand_tree"}


async def test_a_pool_with_rows_of_no_level_costs_the_draft(monkeypatch):
    """Drafts are not trusted: the output is the model's without it."""
    draft = FakeDraft(1.0)
    extend_tree = draft.extend_tree

    async def lying(*args, **kwargs):
        extended, grown = await extend_tree(*args, **kwargs)
        levels = [replace(one, frontier=one.frontier + 1000) for one in grown.value.levels]
        return extended, replace(grown, value=Pool(levels))

    monkeypatch.setattr(draft, "extend_tree", lying)
    decoder, session = make_decoder(FakeWorkers([FakeTarget()], draft), draft_calls="tree")
    rounds = await decode(decoder)
    assert session.output == EXPECTED
    assert not any(one.speculated for one in rounds)
    assert not draft.sessions


@pytest.mark.parametrize("noise_aware", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
async def test_a_draft_is_told_the_noise_only_if_there_is_some(temperature, noise_aware):
    """Seed and temperature go to the draft of a session that samples, unless switched off."""
    told = []

    class ListeningDraft(FakeDraft):
        async def open(self, session_id, epoch, request, deadline_s):
            told.append(request.aim)
            return await super().open(session_id, epoch, request, deadline_s)

    sampling = SamplingParams(temperature=temperature, seed=2**64 - 1)
    workers = FakeWorkers([FakeTarget()], ListeningDraft(0.6))
    decoder, _ = make_decoder(workers, sampling=sampling, noise_aware=noise_aware)
    await decode(decoder)
    noise = NoiseAim(2**64 - 1, 0.7)
    assert told == [noise if noise_aware and temperature else None]


async def _moments(kinds: tuple[str, ...], draft_calls: DraftCalls = "level") -> int:
    """Counts the moments at which a fault can strike in an undisturbed run."""
    faults = Faults(kinds=kinds)
    workers = FakeWorkers([FakeTarget(faults)], FakeDraft(0.8, faults))
    decoder, _ = make_decoder(workers, draft_calls=draft_calls)
    await decode(decoder)
    return len(faults.seen)


@pytest.mark.parametrize("draft_calls", DRAFT_CALLS)
@pytest.mark.parametrize("error", [UnavailableError, DeadlineError, SessionFailedError])
@DRAFTS
async def test_a_draft_lost_at_any_moment_changes_no_token(draft_type, error, draft_calls):
    """Whatever command the draft fails, before or after doing it, only speed suffers."""
    for at in range(await _moments(("draft.",), draft_calls)):
        faults = Faults(at, ("draft.",), error)
        target, draft = FakeTarget(faults), draft_type(0.8, faults)
        decoder, session = make_decoder(FakeWorkers([target], draft), draft_calls=draft_calls)
        await decode(decoder)
        assert session.output == EXPECTED, f"fault at {at}: {faults.seen[at]}"
        assert not target.sessions
        assert not draft.sessions


@pytest.mark.parametrize(
    "error", [UnavailableError, DeadlineError, UnknownSessionError, StaleStampError]
)
@DRAFTS
async def test_a_target_lost_at_any_moment_changes_no_token(draft_type, error):
    """The session is rebuilt from the committed log on the other target, or on the same one."""
    for num_targets in (1, 2):
        for at in range(await _moments(("target.",))):
            faults = Faults(at, ("target.",), error)
            targets = [FakeTarget(faults) for _ in range(num_targets)]
            draft = draft_type(0.8, faults)
            decoder, session = make_decoder(FakeWorkers(targets, draft))
            rounds = await decode(decoder)
            assert session.output == EXPECTED, f"fault at {at}: {faults.seen[at]}"
            assert sum(len(one.tokens) for one in rounds) == len(EXPECTED)
            assert not any(one.sessions for one in targets)
            assert not draft.sessions


async def test_a_session_that_moves_waits_until_a_target_has_room():
    """What it delivered stands: it asks full targets again, where a new request would step back."""
    num_refused, num_verified = 0, 0

    async def hook(command: str) -> None:
        nonlocal num_refused, num_verified
        num_verified += command == "target.verify"
        if num_verified < 3:
            return
        if command == "target.verify" and not num_refused:
            raise UnavailableError("planned")
        # Both have no KV, twice; then one has, but takes no more commands.
        if num_refused < 4 or (command == "target.prefill" and num_refused == 4):
            num_refused += 1
            raise ResourceExhaustedError("planned")

    workers = FakeWorkers([FakeTarget(hook), FakeTarget(hook)], FakeDraft(0.8))
    decoder, session = make_decoder(workers)
    await decode(decoder)
    assert session.output == EXPECTED
    assert (num_refused, workers.waits_for_room) == (5, 3)
    assert not any(one.sessions for one in workers.targets)


async def test_a_rebuilt_session_keeps_prompt_and_output_apart():
    """With penalties, min_tokens and log-probs, wherever the target is lost."""
    params = SamplingParams(presence_penalty=0.5, min_tokens=20)
    stop = plain_decode(PROMPT, MAX_TOKENS, params)[15]
    expected = plain_decode(PROMPT, MAX_TOKENS, params, [stop])
    for at in range(await _moments(("target.",))):
        faults = Faults(at, ("target.",), UnavailableError)
        targets = [FakeTarget(faults), FakeTarget(faults)]
        decoder, session = make_decoder(
            FakeWorkers(targets, FakeDraft(0.8, faults)),
            sampling=params,
            stop_tokens=frozenset([stop]),
            num_logprobs=1,
        )
        rounds = await decode(decoder)
        assert session.output == expected[: len(session.output)], f"fault at {at}"
        assert len(session.output) >= 20
        got = [one.token_id for round_ in rounds for one in round_.logprobs]
        assert got == session.output


async def test_a_draft_comes_back_from_the_targets_features():
    """After a loss the draft is rebuilt by ReadFeatures and drafts again."""
    faults = Faults(4, ("draft.ex",))
    draft = FakeDraft(1.0, faults)
    decoder, session = make_decoder(
        FakeWorkers([FakeTarget()], draft), max_tokens=60, retry_rounds=2
    )
    rounds = await decode(decoder)
    assert session.output == plain_decode(PROMPT, 60, GREEDY)
    assert draft.opened == 2
    assert sum(not one.speculated for one in rounds[1:]) == 2
    assert rounds[-1].speculated


async def test_a_language_model_draft_comes_back_from_the_log_alone():
    """It is given the committed tokens again, in bounded chunks; no features are ever asked for."""
    asked: list[str] = []

    async def note(command: str) -> None:
        await asyncio.sleep(0)
        asked.append(command)

    target, draft = FakeTarget(note), FakeLanguageModelDraft(1.0, Faults(4, ("draft.ex",)))
    decoder, session = make_decoder(FakeWorkers([target], draft), max_tokens=60, retry_rounds=2)
    specs = []
    rounds = []
    async for round_ in decoder.run():
        rounds.append(round_)
        specs += [one.request.feature_spec for one in target.sessions.values()]
    decoder.close()
    assert session.output == plain_decode(PROMPT, 60, GREEDY)
    assert draft.opened == 2
    assert sum(not one.speculated for one in rounds[1:]) == 2
    assert rounds[-1].speculated
    assert set(specs) == {None}
    assert "target.read_features" not in asked
    assert draft.longest_extend <= SHAPE.depth + 1  # Chunks are 3 tokens long, rounds up to this.


@pytest.mark.parametrize("context_length", [5, len(PROMPT) + 1, 20])
async def test_beyond_a_short_draft_s_context_decoding_is_plain(context_length):
    """A draft whose context ends before the session does is left there, once and for good."""
    draft = FakeLanguageModelDraft(1.0, context_length=context_length)
    decoder, session = make_decoder(FakeWorkers([FakeTarget()], draft), retry_rounds=1)
    lengths = []
    async for round_ in decoder.run():
        lengths.append((round_.prefix_length, round_.speculated))
    decoder.close()
    assert session.output == EXPECTED
    assert all(speculated == (at < context_length) for at, speculated in lengths[1:])
    assert draft.opened == (len(PROMPT) < context_length)
    assert not draft.sessions


async def test_a_draft_lost_while_it_is_rebuilt_waits_from_that_round_on():
    """A failed rebuild doubles the wait, counted from the round it failed in."""
    lost: list[str] = []

    async def lose_twice(command: str) -> None:
        await asyncio.sleep(0)
        # In round 2, and in the first rebuild after it: only then are pairs appended again.
        moments = ["draft.extend"] * 5 + ["draft.append"]
        if command == moments[min(len(lost), 5)]:
            lost.append(command)
            if len(lost) in (5, 6):
                raise UnavailableError("planned")

    decoder, session = make_decoder(
        FakeWorkers([FakeTarget()], FakeDraft(1.0, lose_twice)), max_tokens=60, retry_rounds=2
    )
    rounds = await decode(decoder)
    assert session.output == plain_decode(PROMPT, 60, GREEDY)
    plain = [one.round_index for one in rounds[1:] if not one.speculated]
    assert plain == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("length", [2, 7])
async def test_a_draft_that_does_not_answer_open_holds_up_no_first_token(length):
    """The first token comes while Open is unanswered; what follows is the model's without it."""
    expired = asyncio.Event()

    async def freeze(command: str) -> None:
        await asyncio.sleep(0)
        if command == "draft.open":
            await expired.wait()
            raise DeadlineError("planned")

    prompt, draft = PROMPT[:length], FakeDraft(1.0, freeze)
    decoder, session = make_decoder(FakeWorkers([FakeTarget()], draft), prompt=prompt)
    rounds = decoder.run()
    async with asyncio.timeout(5.0):
        first = await anext(rounds)
    assert first.tokens == session.output == plain_decode(prompt, 1, GREEDY)
    expired.set()
    assert not any([one.speculated async for one in rounds])
    decoder.close()
    assert session.output == plain_decode(prompt, MAX_TOKENS, GREEDY)


@pytest.mark.parametrize("length", [2, 7])
async def test_a_draft_that_opens_late_misses_no_pair(length):
    """What the target computed before Open was answered reaches the draft in the first round."""
    first_token = asyncio.Event()

    async def open_late(command: str) -> None:
        await asyncio.sleep(0)
        if command == "draft.open":
            await first_token.wait()

    prompt = PROMPT[:length]
    workers = FakeWorkers([FakeTarget()], FakeDraft(1.0, open_late))
    decoder, session = make_decoder(workers, prompt=prompt)
    rounds = decoder.run()
    async with asyncio.timeout(5.0):
        await anext(rounds)
    first_token.set()
    assert all([one.speculated async for one in rounds])
    decoder.close()
    assert session.output == plain_decode(prompt, MAX_TOKENS, GREEDY)


async def test_a_session_that_ends_before_its_draft_is_open_leaves_nothing():
    """Whatever Open has come to, the draft is freed and the wait for it is over."""

    async def freeze(command: str) -> None:
        if command == "draft.open" and draft.sessions:
            await asyncio.Event().wait()
        await asyncio.sleep(0)

    draft = FakeDraft(1.0, freeze)
    decoder, session = make_decoder(FakeWorkers([FakeTarget()], draft), max_tokens=1)
    before = asyncio.all_tasks()
    async with asyncio.timeout(5.0):
        await decode(decoder)
    await asyncio.sleep(0.002)
    assert session.output == EXPECTED[:1]
    assert draft.opened == 1
    assert not draft.sessions
    assert asyncio.all_tasks() == before


async def test_a_target_that_stays_away_fails_the_session():
    """Moves are bounded; what was delivered stands."""

    async def down(command: str) -> None:
        await asyncio.sleep(0)
        raise UnavailableError("planned")

    decoder, session = make_decoder(FakeWorkers([FakeTarget(down)], None))
    with pytest.raises(UnavailableError):
        await decode(decoder)
    assert session.output == []


async def test_a_full_target_refuses_before_anything_is_delivered():
    """RESOURCE_EXHAUSTED at Open is the caller's to handle."""
    faults = Faults(0, ("target.open",), ResourceExhaustedError)
    target = FakeTarget(faults)
    decoder, _ = make_decoder(FakeWorkers([target], FakeDraft(1.0)))
    with pytest.raises(ResourceExhaustedError):
        await decode(decoder)
    assert not target.sessions


async def test_a_full_target_is_passed_over_for_one_with_room():
    """However many are full; the session is refused only when all of them are."""

    async def refuse(command: str) -> None:
        await asyncio.sleep(0)
        raise ResourceExhaustedError("planned")

    async def too_long(command: str) -> None:
        await asyncio.sleep(0)
        raise InvalidArgumentError("max_length", 40, "at most 8, the KV of this target")

    full = [FakeTarget(refuse), FakeTarget(too_long)]
    decoder, session = make_decoder(FakeWorkers([*full, FakeTarget()], FakeDraft(1.0)))
    await decode(decoder)
    assert session.output == EXPECTED
    decoder, _ = make_decoder(FakeWorkers(full, FakeDraft(1.0)))
    with pytest.raises(ResourceExhaustedError):
        await decode(decoder)
    decoder, _ = make_decoder(FakeWorkers([FakeTarget(too_long)], FakeDraft(1.0)))
    with pytest.raises(InvalidArgumentError):
        await decode(decoder)


async def test_a_session_whose_target_is_lost_moves_to_one_with_room():
    """A full target ends no session that another one can go on with."""
    lost, full = FakeTarget(), FakeTarget()
    decoder, session = make_decoder(FakeWorkers([lost, full, FakeTarget()], FakeDraft(0.5)))
    rounds = decoder.run()
    await anext(rounds)
    lost.hook = Faults(0, ("target.verify",))
    full.hook = Faults(0, ("target.open",), ResourceExhaustedError)
    assert [one async for one in rounds]
    decoder.close()
    assert session.output == EXPECTED


async def test_cancelling_at_any_moment_frees_both_workers():
    """Wherever a cancellation strikes, neither worker keeps anything of the session."""
    for at in range(await _moments(("draft.", "target."))):
        faults = Faults(at, ("draft.", "target."), asyncio.CancelledError)
        target, draft = FakeTarget(faults), FakeDraft(0.8, faults)
        decoder, session = make_decoder(FakeWorkers([target], draft))
        task = asyncio.create_task(decode(decoder))
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.002)
        assert not target.sessions, f"cancelled at {at}: {faults.seen[at]}"
        assert not draft.sessions, f"cancelled at {at}: {faults.seen[at]}"
        assert session.output == EXPECTED[: len(session.output)]


async def test_a_round_splits_its_time_without_remainder():
    """Draft, verify, transport and controller add up to no more than the round's wall time."""
    decoder, _ = make_decoder(FakeWorkers([FakeTarget()], FakeDraft(0.8)))
    for one in await decode(decoder):
        wall_ms = (one.end_ns - one.start_ns) / 1e6
        assert one.times.total_ms == pytest.approx(wall_ms)
        assert one.times.controller_ms <= wall_ms
    assert one.depth == SHAPE.depth
