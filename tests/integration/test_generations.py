"""A controller and its workers over gRPC say what the model says, and leave nothing behind."""

import asyncio
import dataclasses
import gc
import json
import weakref
from typing import Any

import pytest
import torch
from tests.integration.conftest import PROMPTS
from tests.integration.loopback import (
    PAIR,
    collect,
    complete,
    deployment,
    golden_draft,
    golden_target,
    serve_draft,
    serve_target,
    until,
)
from transformers import AutoModelForCausalLM

from arborist.common.config import parse_config
from arborist.core.errors import (
    InvalidArgumentError,
    MismatchError,
    ResourceExhaustedError,
    UnavailableError,
    UnknownModelError,
)
from arborist.core.sampling import SamplingParams
from arborist.orchestrator.generation import (
    DeliveredRound,
    GenerationRequest,
    SpeculationOptions,
    Started,
    Summary,
)
from arborist.orchestrator.session import FinishReason
from arborist.orchestrator.worker_connection import WorkerConnection

MAX_TOKENS = 40
OFF = SpeculationOptions(enabled=False)
SHAPES = (
    SpeculationOptions(),
    OFF,
    SpeculationOptions(depth=1, top_k=1, num_draft_tokens=1),
    SpeculationOptions(depth=3, top_k=4, num_draft_tokens=8),
    SpeculationOptions(depth=5, top_k=1, num_draft_tokens=5),
)


def request(prompt=PROMPTS[0], max_tokens=MAX_TOKENS, **more) -> GenerationRequest:
    """A request that runs to its limit."""
    return GenerationRequest(prompt, max_tokens, ignore_eos=True, **more)


async def test_greedy_output_is_transformers_output(target_engine, draft_engine, reference):
    """Speculation off or on in any shape: the tokens of `generate`, and sums that add up."""
    async with deployment(targets=[target_engine], drafts=[draft_engine]) as running:
        for prompt in PROMPTS:
            for options in SHAPES:
                done = await complete(running, request(prompt, speculation=options))
                assert done.tokens == reference(prompt, MAX_TOKENS)
                rounds = done.rounds[1:]
                summary = done.summary
                assert [one.round_index for one in done.rounds] == list(range(-1, len(rounds)))
                assert summary.finish_reason is FinishReason.LENGTH
                assert summary.completion_tokens == MAX_TOKENS
                assert summary.prompt_tokens == done.started.prompt_tokens == len(prompt)
                assert summary.speculation.rounds == len(rounds)
                accepted = sum(one.accepted_count for one in rounds)
                assert summary.speculation.accepted_tokens == accepted
                assert summary.speculation.tau == pytest.approx(1 + accepted / len(rounds))
                assert sum(summary.speculation.acceptance_histogram) == len(rounds)
                assert MAX_TOKENS <= 1 + accepted + len(rounds) <= MAX_TOKENS + 6
                assert summary.speculation.rounds_without_draft == 0
                assert all(one.times.total_ms > 0 for one in rounds)
        await running.wait_idle()


async def test_trees_that_follow_the_load_change_no_token(target_engine, draft_engine, reference):
    """Whatever is measured on this machine, for one session and for many, greedy and drawn."""
    config = parse_config({"test": {"speculation": {"adaptive": True}}})
    drawn = {"sampling": SamplingParams(temperature=0.9), "seed": 5}
    async with deployment(targets=[target_engine], drafts=[draft_engine], config=config) as running:
        alone = (await complete(running, request(PROMPTS[0], 60, **drawn))).tokens
        many = [request(prompt, 60) for prompt in PROMPTS for _ in range(4)]
        done = await asyncio.gather(*(complete(running, one) for one in many))
        among = await asyncio.gather(
            complete(running, request(PROMPTS[0], 60, **drawn)),
            *(complete(running, one) for one in many),
        )
        for one, asked in zip(done, many, strict=True):
            assert one.tokens == reference(asked.prompt_token_ids, 60)
        assert among[0].tokens == alone
        await running.wait_idle()


async def test_recorded_outputs_of_the_official_code_come_back(target_engine, draft_engine):
    """The controller over gRPC yields what the official code recorded for the golden prompts."""
    recorded = json.loads((PAIR / "greedy_k4_d3_t8.json").read_text())
    options = SpeculationOptions(depth=4, top_k=4, num_draft_tokens=7)
    async with deployment(targets=[target_engine], drafts=[draft_engine]) as running:
        for case in recorded["cases"][::8]:
            done = await complete(
                running,
                request(tuple(case["prompt"]), len(case["output"]), speculation=options),
            )
            assert done.tokens == case["output"]


async def test_seeded_sampling_is_the_same_for_every_tree(target_engine, draft_engine):
    """A seed fixes the output; speculation and its shape do not touch it."""
    sampling = SamplingParams(temperature=0.9, top_k=40, top_p=0.95)
    async with deployment(targets=[target_engine], drafts=[draft_engine]) as running:
        for seed in (0, 7, 2**63 + 5):
            outputs = []
            for options in SHAPES:
                done = await complete(
                    running, request(sampling=sampling, seed=seed, speculation=options)
                )
                assert done.started.seed == seed
                outputs.append(done.tokens)
            assert all(one == outputs[0] for one in outputs)


async def test_a_drawn_seed_is_reported_and_reproduces_the_output(target_engine, draft_engine):
    """Without a seed the controller draws one; asking again with it gives the same tokens."""
    sampling = SamplingParams(temperature=1.0)
    async with deployment(targets=[target_engine], drafts=[draft_engine]) as running:
        first = await complete(running, request(sampling=sampling))
        second = await complete(running, request(sampling=sampling))
        again = await complete(running, request(sampling=sampling, seed=first.started.seed))
        greedy = await complete(running, request())
    assert first.started.seed != second.started.seed
    assert first.tokens == again.tokens
    assert greedy.started.seed == 0


async def test_many_sessions_at_a_time_do_not_disturb_each_other(
    target_engine, draft_engine, reference
):
    """Ragged batches over sessions of all kinds: everyone gets their own tokens."""
    async with deployment(targets=[target_engine], drafts=[draft_engine]) as running:
        requests = [
            request(prompt, speculation=options) for prompt in PROMPTS for options in SHAPES[:4]
        ]
        done = await asyncio.gather(*(complete(running, one) for one in requests))
        for one, made in zip(done, requests, strict=True):
            assert one.tokens == reference(made.prompt_token_ids, MAX_TOKENS)
        await running.wait_idle()


async def test_the_end_of_sequence_token_ends_the_output(tmp_path, reference):
    """Once the model draws an eos token nothing follows it."""
    expected = reference(PROMPTS[0], MAX_TOKENS)
    eos = expected[11]
    target = tmp_path / "target"
    target.mkdir()
    for file in (PAIR / "target").iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((target / name).read_text())
        settings["eos_token_id"] = eos
        (target / name).write_text(json.dumps(settings))
    async with deployment(targets=[golden_target(target)], drafts=[]) as running:
        asked = dataclasses.replace(request(), ignore_eos=False)
        done = await complete(running, asked)
        ignoring = await complete(running, request())
    assert done.tokens == expected[: expected.index(eos) + 1]
    assert done.summary.finish_reason is FinishReason.EOS
    assert ignoring.tokens == expected


async def test_without_a_draft_generation_goes_on(target_engine, reference):
    """A deployment without drafts serves plain decoding and says so."""
    async with deployment(targets=[target_engine], drafts=[]) as running:
        assert not running.controller.models()[0].speculation
        done = await complete(running, request())
    assert done.tokens == reference(PROMPTS[0], MAX_TOKENS)
    assert done.summary.speculation.rounds_without_draft == MAX_TOKENS - 1
    assert done.summary.speculation.tau == 1.0


async def test_closing_early_frees_both_workers(target_engine, draft_engine):
    """A client that leaves after any event leaves nothing behind."""
    async with deployment(targets=[target_engine], drafts=[draft_engine]) as running:
        for num_events in range(5):
            generation = running.controller.generate(request(max_tokens=400))
            for _ in range(num_events):
                await anext(generation)
            await generation.aclose()
            await generation.aclose()
            await running.wait_idle()
            with pytest.raises(StopAsyncIteration):
                await anext(generation)
            assert running.controller.load() == (0, 0)


async def test_a_request_that_was_left_is_freed_without_garbage_collection(
    target_engine, draft_engine
):
    """Nothing of it hangs in a circle: memory does not grow until a collection comes."""
    async with deployment(targets=[target_engine], drafts=[draft_engine]) as running:
        left = []
        gc.disable()
        try:
            for num_events in range(4):
                generation = running.controller.generate(request(max_tokens=400))
                for _ in range(num_events):
                    await anext(generation)
                await generation.aclose()
                left.append(weakref.ref(generation))
                del generation
            await until(lambda: not any(one() for one in left))
        finally:
            gc.enable()


async def test_leaving_that_is_itself_cancelled_ends_all_the_same(target_engine, draft_engine):
    """Whoever is cancelled twice, while it decodes and while it ends, leaves nothing behind."""
    async with deployment(targets=[target_engine], drafts=[draft_engine]) as running:
        for num_events in range(4):
            generation = running.controller.generate(request(max_tokens=400))
            for _ in range(num_events):
                await anext(generation)
            closing = asyncio.create_task(generation.aclose())
            await asyncio.sleep(0)
            closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)
            await until(lambda: running.controller.load() == (0, 0))
            await running.wait_idle()
            with pytest.raises(StopAsyncIteration):
                await anext(generation)
        labels = {"finished_reason": "cancelled"}
        ended = running.registry.get_sample_value("arborist_request_success_total", labels)
        assert ended == 4


async def test_cancelling_at_any_command_frees_both_workers(
    target_engine, draft_engine, monkeypatch
):
    """Whatever command is under way when the client leaves, the workers are freed at once."""
    closing: list[asyncio.Task] = []
    count = 0
    at = 0
    ask = WorkerConnection.ask

    async def counting_ask(self, lane, build, deadline_s):
        nonlocal count
        count += 1
        if count == at:
            closing.append(asyncio.create_task(generation.aclose()))
        return await ask(self, lane, build, deadline_s)

    monkeypatch.setattr(WorkerConnection, "ask", counting_ask)
    options = SpeculationOptions(depth=3, top_k=2, num_draft_tokens=4)
    async with deployment(targets=[target_engine], drafts=[draft_engine]) as running:
        for at in range(1, 14):
            count = 0
            generation = running.controller.generate(request(max_tokens=100, speculation=options))
            async for _ in generation:
                pass
            await asyncio.gather(*closing)
            assert len(closing) == at
            await running.wait_idle()


async def test_finishing_early_counts_only_what_was_delivered(target_engine, draft_engine):
    """A stop string ends the output inside a round: the summary follows at once and is right."""
    async with deployment(targets=[target_engine], drafts=[draft_engine]) as running:
        generation = running.controller.generate(request(max_tokens=400))
        num_tokens = 0
        num_rounds = 0
        async for event in generation:
            if isinstance(event, DeliveredRound):
                num_tokens += len(event.token_ids)
                if event.round_index == 3:
                    num_rounds = 4
                    await generation.finish(FinishReason.STOP, num_tokens - 1)
            elif not isinstance(event, Started):
                summary = event
        assert isinstance(summary, Summary)
        assert summary.finish_reason is FinishReason.STOP
        assert summary.completion_tokens == num_tokens - 1
        assert summary.speculation.rounds == num_rounds
        await running.wait_idle()


async def test_a_slow_reader_pauses_its_session(target_engine):
    """Decoding runs a few rounds ahead, then waits: memory per request is bounded."""
    async with deployment(targets=[target_engine], drafts=[]) as running:
        generation = running.controller.generate(request(max_tokens=300))
        assert isinstance(await anext(generation), Started)
        await asyncio.sleep(1.0)
        round_ = await anext(generation)
        assert isinstance(round_, DeliveredRound)
        await generation.finish(FinishReason.STOP, 1)
        summary = await anext(generation)
    assert isinstance(summary, Summary)
    assert summary.timing.total_ms >= 1000
    assert summary.completion_tokens == 1


async def test_a_draft_that_dies_is_not_missed(target_engine, reference):
    """The draft ends in the middle of a stream: the tokens go on, without speculation."""
    async with deployment(targets=[target_engine], drafts=[golden_draft()]) as running:
        generation = running.controller.generate(request(max_tokens=60))
        tokens: list[int] = []
        async for event in generation:
            if isinstance(event, DeliveredRound):
                tokens += event.token_ids
                if event.round_index == 2:
                    await running.drafts[0].stop()
            elif isinstance(event, Summary):
                summary = event
    assert tokens == reference(PROMPTS[0], 60)
    assert summary.speculation.rounds_without_draft > 0


async def test_a_draft_that_comes_back_is_used_again(target_engine, reference):
    """A new draft at the old address is rebuilt from the target's features mid-session."""
    async with deployment(targets=[target_engine], drafts=[golden_draft()]) as running:
        generation = running.controller.generate(request(max_tokens=120))
        rounds: list[DeliveredRound] = []
        async for event in generation:
            if isinstance(event, DeliveredRound):
                rounds.append(event)
                if event.round_index == 2:
                    port = int(running.drafts[0].address.rpartition(":")[2])
                    await running.drafts[0].stop()
                    running.drafts[0] = await serve_draft(golden_draft(), port=port)
                    await until(lambda: running.controller.workers.drafts)
        await running.wait_idle()
        await running.drafts[0].stop()
    assert [token for one in rounds for token in one.token_ids] == reference(PROMPTS[0], 120)
    assert rounds[-1].num_draft_tokens > 0
    assert any(one.num_draft_tokens == 0 for one in rounds[1:])


async def test_a_target_that_dies_is_replaced(draft_engine, reference):
    """The session is rebuilt on the other target from its committed log: same tokens."""
    targets = [golden_target(), golden_target()]
    async with deployment(targets=targets, drafts=[draft_engine]) as running:
        generation = running.controller.generate(request(max_tokens=60))
        tokens: list[int] = []
        async for event in generation:
            if isinstance(event, DeliveredRound):
                tokens += event.token_ids
                if event.round_index == 2:
                    (used,) = [one for one in running.targets if one.worker.info.num_sessions]
                    await used.stop()
    assert tokens == reference(PROMPTS[0], 60)


async def test_penalties_and_logprobs_survive_the_loss_of_a_target(draft_engine):
    """Over gRPC: a rebuilt session still tells prompt and output apart, as plain decoding does."""
    options = {
        "sampling": SamplingParams(
            temperature=0.7,
            logit_bias=((220, -2.0),),
            repetition_penalty=1.2,
            presence_penalty=0.5,
            frequency_penalty=0.25,
            min_tokens=30,
        ),
        "seed": 5,
        "num_logprobs": 2,
        "stop_token_ids": (7, 220),
        "max_tokens": 60,
    }
    targets = [golden_target(), golden_target()]
    async with deployment(targets=targets, drafts=[draft_engine]) as running:
        plain = await complete(running, request(speculation=OFF, **options))
        generation = running.controller.generate(request(**options))
        rounds: list[DeliveredRound] = []
        async for event in generation:
            if isinstance(event, DeliveredRound):
                rounds.append(event)
                if event.round_index == 2:
                    (used,) = [one for one in running.targets if one.worker.info.num_sessions]
                    await used.stop()
    tokens = [token for one in rounds for token in one.token_ids]
    assert tokens == plain.tokens
    assert len(tokens) >= 30
    logprobs = [own for one in rounds for own in one.logprobs]
    assert [one.token_id for one in logprobs] == tokens
    assert all(len(one.top) == 2 for one in logprobs)


async def test_a_target_that_restarts_is_found_again(draft_engine, reference):
    """With one target the session waits for it to come back, then goes on: same tokens."""
    async with deployment(targets=[golden_target()], drafts=[draft_engine]) as running:
        generation = running.controller.generate(request(max_tokens=60))
        tokens: list[int] = []
        async for event in generation:
            if isinstance(event, DeliveredRound):
                tokens += event.token_ids
                if event.round_index == 2:
                    port = int(running.targets[0].address.rpartition(":")[2])
                    await running.targets[0].stop()
                    running.targets[0] = await serve_target(golden_target(), port=port)
        await running.targets[0].stop()
    assert tokens == reference(PROMPTS[0], 60)


async def test_a_head_of_another_target_is_refused_and_not_used(target_engine, reference, tmp_path):
    """The misfit is an error at the start; requests are served without the draft."""
    other = AutoModelForCausalLM.from_pretrained(PAIR / "target", dtype=torch.float32)
    with torch.no_grad():  # A relative's table: near enough for the draft itself to start.
        other.get_input_embeddings().weight.mul_(1.01)
    other.save_pretrained(tmp_path)
    async with deployment(
        targets=[target_engine], drafts=[golden_draft(tmp_path)], check_fit=False
    ) as running:
        with pytest.raises(MismatchError, match="does not fit"):
            await running.controller.wait_ready(20.0, want_draft=True)
        assert running.controller.ready
        assert not running.controller.models()[0].speculation
        done = await complete(running, request())
        assert done.tokens == reference(PROMPTS[0], MAX_TOKENS)
        assert done.summary.speculation.draft_tokens == 0
        assert running.controller.workers.num_misfits == 1
        series = "arborist_draft_misfits_total"
        await until(lambda: running.registry.get_sample_value(series) == 1)


@pytest.mark.parametrize(
    ("bad", "error", "field"),
    [
        ({"prompt": ()}, InvalidArgumentError, "prompt"),
        ({"max_tokens": 0}, InvalidArgumentError, "max_tokens"),
        ({"max_tokens": 600}, InvalidArgumentError, "prompt + max_tokens"),
        ({"model": "other"}, UnknownModelError, "model"),
        ({"speculation": SpeculationOptions(depth=5)}, InvalidArgumentError, "speculation.depth"),
        ({"speculation": SpeculationOptions(top_k=0)}, InvalidArgumentError, "speculation.top_k"),
        (
            {"speculation": SpeculationOptions(num_draft_tokens=257)},
            InvalidArgumentError,
            "speculation.num_draft_tokens",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_bad_requests_start_nothing(target_engine, bad, error, field):
    """What cannot be served is refused by name before anything begins."""
    config = parse_config({"test": {"speculation": {"depth": 3, "max_depth": 4}}})
    async with deployment(targets=[target_engine], drafts=[], config=config) as running:
        with pytest.raises(error) as caught:
            running.controller.generate(request(**bad))
        assert caught.value.metadata["field"] == field
        assert running.controller.load() == (0, 0)


async def test_a_full_controller_refuses_with_advice(target_engine, reference):
    """One runs, one waits, the third is refused at once and told when to come again."""
    config = parse_config({"test": {"controller": {"max_sessions": 1, "max_queued_requests": 1}}})
    async with deployment(targets=[target_engine], drafts=[], config=config) as running:
        first = running.controller.generate(request())
        second = running.controller.generate(request())
        with pytest.raises(ResourceExhaustedError) as refused:
            running.controller.generate(request())
        assert refused.value.retry_after_ms > 0
        assert running.controller.load() == (1, 1)
        await second.aclose()
        assert running.controller.load() == (1, 0)
        third = running.controller.generate(request())
        done = await asyncio.gather(collect(first), collect(third))
        assert all(one.tokens == reference(PROMPTS[0], MAX_TOKENS) for one in done)
        assert done[1].summary.timing.queue_ms > 0


async def test_requests_wait_for_room_at_the_target(draft_engine, reference):
    """A target with KV for one session at a time serves all of them, one after the other."""
    small = golden_target(kv_capacity_tokens=len(PROMPTS[0]) + MAX_TOKENS + 80)
    async with deployment(targets=[small], drafts=[draft_engine]) as running:
        done = await asyncio.gather(*(complete(running, request()) for _ in range(4)))
        assert all(one.tokens == reference(PROMPTS[0], MAX_TOKENS) for one in done)
        await running.wait_idle()


async def test_stopping_drains_then_ends(target_engine, draft_engine, reference):
    """Running requests finish within the grace time; new ones are refused meanwhile."""
    async with deployment(targets=[target_engine], drafts=[draft_engine]) as running:
        generation = running.controller.generate(request())
        await anext(generation)
        stopping = asyncio.create_task(running.controller.stop(20.0))
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError):
            running.controller.generate(request())
        assert not running.controller.ready
        tokens = [
            token
            async for event in generation
            if isinstance(event, DeliveredRound)
            for token in event.token_ids
        ]
        await stopping
        assert tokens == reference(PROMPTS[0], MAX_TOKENS)
        await running.wait_idle()


async def test_stopping_without_grace_ends_running_requests(target_engine, draft_engine):
    """After the grace time a running request fails with UNAVAILABLE and everything is freed."""
    async with deployment(targets=[target_engine], drafts=[draft_engine]) as running:
        generation = running.controller.generate(request(max_tokens=400))
        await anext(generation)
        await running.controller.stop(0.0)
        with pytest.raises(UnavailableError):
            async for _ in generation:
                pass
        await running.wait_idle()


async def test_no_target_is_unavailable_not_a_hang():
    """Without a target a request is refused at once with advice when to come again."""
    async with deployment(targets=[], drafts=[], check_fit=False) as running:
        assert not running.controller.ready
        assert running.controller.models() == []
        with pytest.raises(UnavailableError) as refused:
            running.controller.generate(request())
        assert refused.value.retry_after_ms > 0
        with pytest.raises(UnavailableError, match="target"):
            await running.controller.wait_ready(0.05)


async def test_workers_that_join_later_are_found(target_engine, draft_engine, reference):
    """The controller follows its directory: who is listed is connected, who left is let go."""
    async with deployment(targets=[], drafts=[], check_fit=False) as running:
        running.controller.workers._period_s = 0.02
        served = await serve_target(target_engine), await serve_draft(draft_engine)
        running.directory.targets.append(served[0].address)
        running.directory.drafts.append(served[1].address)
        await running.controller.wait_ready(20.0, want_draft=True)
        done = await complete(running, request())
        assert done.tokens == reference(PROMPTS[0], MAX_TOKENS)
        running.directory.drafts.clear()
        await until(lambda: not running.controller.workers.drafts)
        for one in served:
            await one.stop()


async def test_sessions_of_a_vanished_controller_are_released(target_engine, draft_engine):
    """Streams that end without a word free their sessions after the grace time."""
    async with deployment(targets=[target_engine], drafts=[draft_engine]) as running:
        generation = running.controller.generate(request(max_tokens=400))
        await anext(generation)
        await anext(generation)
        workers = running.controller.workers
        links: list[Any] = [*workers.targets, *workers.drafts]
        running.directory.targets.clear()
        running.directory.drafts.clear()
        workers._listed.clear()
        for link in links:
            # As a crash would: the connections end and nothing is released.
            link.connection._task.cancel()
            await link.connection._detach()
        assert any(one.worker.info.num_sessions for one in running.targets)
        await running.wait_idle()
        await generation.aclose()


async def test_known_workers_stay_when_the_directory_is_gone(
    target_engine, draft_engine, reference, monkeypatch
):
    """Without its directory the controller goes on with the workers it knows."""
    asked = 0

    async def gone():
        nonlocal asked
        asked += 1
        raise UnavailableError("planned")

    async with deployment(targets=[target_engine], drafts=[draft_engine]) as running:
        running.controller.workers._period_s = 0.02
        monkeypatch.setattr(running.directory, "snapshot", gone)
        await until(lambda: asked > 2)
        done = await complete(running, request())
    assert done.tokens == reference(PROMPTS[0], MAX_TOKENS)
    assert done.summary.speculation.draft_tokens > 0


async def test_metrics_count_what_was_delivered(target_engine, draft_engine):
    """The Prometheus series agree with the summary."""
    async with deployment(targets=[target_engine], drafts=[draft_engine]) as running:
        done = await complete(running, request())
        with pytest.raises(UnknownModelError):
            running.controller.generate(request(model="other"))
        page = running.registry

        def value(name: str, **labels: str) -> float | None:
            return page.get_sample_value(f"arborist_{name}", labels)

        speculation = done.summary.speculation
        assert value("spec_decode_num_drafts_total") == speculation.rounds
        assert value("spec_decode_num_draft_tokens_total") == speculation.draft_tokens
        assert value("spec_decode_num_accepted_tokens_total") == speculation.accepted_tokens
        reached = sum(speculation.acceptance_histogram[1:])
        assert value("spec_decode_num_accepted_tokens_per_pos_total", position="0") == reached
        assert value("generation_tokens_total") == MAX_TOKENS
        assert value("prompt_tokens_total") == len(PROMPTS[0])
        assert value("request_success_total", finished_reason="length") == 1
        assert value("request_failure_total", reason="UNKNOWN_MODEL") == 1
        assert value("num_requests_running") == value("num_requests_waiting") == 0
