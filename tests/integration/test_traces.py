"""What an OTLP collector receives: one connected tree of spans per request."""

import json
from collections import Counter, defaultdict

import pytest
from tests.integration.conftest import PROMPTS
from tests.integration.loopback import Completion, collect, complete, deployment, golden_draft
from tests.otlp_receiver import ReceivedSpan, otlp_receiver

from arborist.common.config import TelemetryConfig, parse_config
from arborist.common.telemetry import WorkerSpanSink, build_span_recorder
from arborist.common.traceparent import format_traceparent
from arborist.core.engine import ExpandTree
from arborist.core.errors import SessionFailedError
from arborist.core.policy_settings import DRAFT_CALLS
from arborist.orchestrator.generation import DeliveredRound, GenerationRequest, SpeculationOptions
from arborist.orchestrator.session import FinishReason

OPTIONS = SpeculationOptions(depth=4, top_k=4, num_draft_tokens=12)


def request(**more) -> GenerationRequest:
    """A request of several rounds."""
    values = {"ignore_eos": True, "speculation": OPTIONS, **more}
    return GenerationRequest(PROMPTS[2], 40, **values)


async def run_traced(
    monkeypatch, target_engine, draft_engine, act, detail="level", draft_calls="level"
):
    """Runs `act(deployment)` with three recorders that export to a real receiver.

    Returns:
        What `act` returned, and every span received.
    """
    with otlp_receiver() as receiver:
        for name, value in receiver.environment.items():
            monkeypatch.setenv(name, value)
        settings = {
            "telemetry": {"trace_detail": detail},
            "speculation": {"draft_calls": draft_calls},
        }
        config = parse_config({"test": settings})
        recorders = {
            role: build_span_recorder(TelemetryConfig(), role)
            for role in ("controller", "draft", "target")
        }
        async with deployment(
            targets=[target_engine],
            drafts=[draft_engine],
            config=config,
            recorder=recorders["controller"],
            draft_spans=WorkerSpanSink(recorders["draft"]),
            target_spans=WorkerSpanSink(recorders["target"]),
        ) as running:
            outcome = await act(running)
            await running.wait_idle()
        for recorder in recorders.values():
            assert recorder.flush(20.0)
            assert recorder.num_dropped == 0
            recorder.shutdown(5.0)
        return outcome, list(receiver.spans)


def check_connected(spans: list[ReceivedSpan], root: ReceivedSpan) -> None:
    """Every span hangs below the root, by parents of the same trace, and none came twice."""
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)
    assert {span.trace_id for span in spans} == {root.trace_id}
    for span in spans:
        node = span
        while node is not root:
            assert node.parent_span_id in by_id, f"{span.name}: no parent for {node.name}"
            node = by_id[node.parent_span_id]


def check_request(spans: list[ReceivedSpan], done: Completion) -> None:
    """The tree says what the response said."""
    (root,) = [span for span in spans if span.name == "generate"]
    check_connected(spans, root)
    children = defaultdict(list)
    for span in spans:
        children[span.parent_span_id].append(span)
    rounds = sorted(
        (span for span in children[root.span_id] if span.name == "round"),
        key=lambda span: span.attributes["round_index"],
    )
    (prefill,) = [span for span in children[root.span_id] if span.name == "prefill"]
    assert len(rounds) == len(done.rounds) - 1
    delivered = 1
    for span, round_ in zip(rounds, done.rounds[1:], strict=True):
        assert span.attributes["round_index"] == round_.round_index
        assert span.attributes["accepted_count"] == round_.accepted_count
        assert span.attributes["num_draft_tokens"] == round_.num_draft_tokens
        assert span.attributes["depth"] == round_.depth == OPTIONS.depth
        assert span.attributes["delivered_count"] == len(round_.token_ids)
        delivered += span.attributes["delivered_count"]
        names = Counter(child.name for child in children[span.span_id])
        assert names == {
            "draft.extend": 1,
            "draft.expand": OPTIONS.depth - 1,
            "tree.rerank": 1,
            "target.verify": 1,
            "commit": 1,
        }
        levels = [
            child.attributes["level"]
            for child in sorted(children[span.span_id], key=lambda child: child.start_ns)
            if child.name.startswith("draft.")
        ]
        assert levels == list(range(1, OPTIONS.depth + 1))
        computed = [
            child.attributes["compute_ms"]
            for child in children[span.span_id]
            if child.name.startswith("draft.")
        ]
        assert all(one > 0 for one in computed)
        assert span.attributes["draft_compute_ms"] == pytest.approx(sum(computed))
        for child in children[span.span_id]:
            assert span.start_ns <= child.start_ns <= child.end_ns <= span.end_ns
            workers = [below.service for below in children[child.span_id]]
            role = child.name.partition(".")[0]
            expected = [f"arborist-{role}"] if role in ("draft", "target") else []
            assert workers == expected, child.name
    assert delivered == len(done.tokens) == root.attributes["completion_tokens"]
    # What was accepted is what was delivered, except what the limit cut off the last round.
    cut = rounds[-1].attributes["accepted_count"] + 1 - len(done.rounds[-1].token_ids)
    accepted = sum(span.attributes["accepted_count"] + 1 for span in rounds)
    assert 1 + accepted - cut == len(done.tokens)
    assert prefill.attributes["delivered_count"] == 1
    assert {child.name for child in children[prefill.span_id]} >= {"target.prefill", "commit"}
    assert root.attributes["rounds"] == len(rounds)
    assert root.attributes["tau"] == pytest.approx(done.summary.speculation.tau)


@pytest.mark.parametrize("draft_calls", DRAFT_CALLS)
async def test_every_request_is_one_connected_tree(
    monkeypatch, target_engine, draft_engine, draft_calls
):
    """Rounds in the trace are the rounds of the response, with levels and workers below them."""

    async def act(running):
        return [await complete(running, request()) for _ in range(2)]

    done, spans = await run_traced(
        monkeypatch, target_engine, draft_engine, act, draft_calls=draft_calls
    )
    traces = defaultdict(list)
    for span in spans:
        traces[span.trace_id].append(span)
    assert set(traces) == {one.started.trace_id for one in done}
    for one in done:
        check_request(traces[one.started.trace_id], one)


async def test_a_clients_trace_is_continued(monkeypatch, target_engine, draft_engine):
    """The client's traceparent is the parent of `generate`; its trace id is reported."""

    async def act(running):
        traceparent = format_traceparent(0xABC, 0xDEF)
        return await complete(running, request(traceparent=traceparent))

    done, spans = await run_traced(monkeypatch, target_engine, draft_engine, act)
    (root,) = [span for span in spans if span.name == "generate"]
    assert done.started.trace_id == root.trace_id == f"{0xABC:032x}"
    assert root.parent_span_id == f"{0xDEF:016x}"
    check_connected(spans, root)


async def test_a_client_that_does_not_sample_is_not_traced(
    monkeypatch, target_engine, draft_engine
):
    """The sampled flag of the caller decides."""

    async def act(running):
        traceparent = format_traceparent(0xABC, 0xDEF)[:-2] + "00"
        return await complete(running, request(traceparent=traceparent))

    done, spans = await run_traced(monkeypatch, target_engine, draft_engine, act)
    assert done.started.trace_id == ""
    assert spans == []


@pytest.mark.parametrize("draft_calls", DRAFT_CALLS)
async def test_detail_round_folds_levels_into_attributes(
    monkeypatch, target_engine, draft_engine, draft_calls
):
    """A busy server records one span per round, with every phase in its attributes."""

    async def act(running):
        return await complete(running, request())

    done, spans = await run_traced(
        monkeypatch, target_engine, draft_engine, act, "round", draft_calls
    )
    (root,) = [span for span in spans if span.name == "generate"]
    check_connected(spans, root)
    rounds = [span for span in spans if span.name == "round"]
    assert len(rounds) == len(done.rounds) - 1
    assert OPTIONS.depth is not None
    for span in rounds:
        names = span.attributes["phase_names"]
        assert names == [
            "draft.extend",
            *["draft.expand"] * (OPTIONS.depth - 1),
            "tree.rerank",
            "target.verify",
            "commit",
        ]
        assert len(span.attributes["phase_compute_ms"]) == len(names)
    assert not any(span.name.startswith("draft.") for span in spans)


async def test_a_tree_that_fails_is_still_connected(monkeypatch, target_engine):
    """What a draft failed to grow is in the trace as failed levels of its round."""
    draft, calls = golden_draft(), 0
    forward = draft.run

    def failing(batch):
        nonlocal calls
        calls += any(isinstance(work, ExpandTree) for work in batch)
        if calls == 2:
            return [SessionFailedError("planned") for _ in batch]
        return forward(batch)

    monkeypatch.setattr(draft, "run", failing)

    async def act(running):
        return await complete(running, request())

    done, spans = await run_traced(monkeypatch, target_engine, draft, act, draft_calls="tree")
    (root,) = [span for span in spans if span.name == "generate"]
    check_connected(spans, root)
    assert done.summary.speculation.rounds_without_draft > 0
    failed = [span for span in spans if span.attributes.get("error.type") == "SESSION_FAILED"]
    assert {span.name for span in failed} >= {"worker.expand_tree"}
    assert not any(span.name == "abandoned" for span in spans)


@pytest.mark.parametrize("draft_calls", DRAFT_CALLS)
async def test_a_request_left_early_is_still_connected(
    monkeypatch, target_engine, draft_engine, draft_calls
):
    """What was decoded ahead or cut short is in the trace under another name than `round`."""

    async def act(running):
        left = running.controller.generate(request())
        async for event in left:
            if isinstance(event, DeliveredRound) and event.round_index == 1:
                break
        await left.aclose()
        stopped = running.controller.generate(request())
        num_tokens = 0
        async for event in stopped:
            if isinstance(event, DeliveredRound):
                num_tokens += len(event.token_ids)
                if event.round_index == 2:
                    await stopped.finish(FinishReason.STOP, num_tokens - 1)
        await stopped.aclose()
        return num_tokens - 1

    num_tokens, spans = await run_traced(
        monkeypatch, target_engine, draft_engine, act, draft_calls=draft_calls
    )
    roots = {span.attributes["finish_reason"]: span for span in spans if span.name == "generate"}
    assert set(roots) == {"cancelled", "stop"}
    for reason, num_rounds in (("cancelled", 2), ("stop", 3)):
        of_request = [span for span in spans if span.trace_id == roots[reason].trace_id]
        check_connected(of_request, roots[reason])
        rounds = [span for span in of_request if span.name == "round"]
        assert len(rounds) == roots[reason].attributes["rounds"] == num_rounds
    stopped = [span for span in spans if span.trace_id == roots["stop"].trace_id]
    counts = [span.attributes.get("delivered_count", 0) for span in stopped]
    assert sum(counts) == num_tokens == roots["stop"].attributes["completion_tokens"]


async def test_spans_hold_no_text(monkeypatch, target_engine, draft_engine):
    """Neither prompt nor output ids appear in any attribute."""

    async def act(running):
        return await collect(running.controller.generate(request()))

    done, spans = await run_traced(monkeypatch, target_engine, draft_engine, act)
    written = json.dumps([span.attributes for span in spans])
    for tokens in (PROMPTS[2][:4], tuple(done.tokens[:4])):
        assert ", ".join(str(token) for token in tokens) not in written
