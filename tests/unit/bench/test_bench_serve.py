"""Load on a server: what is sent when, what is counted, what the figures say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from itertools import islice, pairwise
from pathlib import Path

import grpc.aio
import pytest
from tests.contract.scripted_generator import ScriptedGenerator
from tests.unit.api.tokenizers import byte_level_tokenizer

from arborist.cli.bench_serve.figures import ServiceLevel, median_figures, run_figures
from arborist.cli.bench_serve.load_point import LoadPoint, in_turn, load_points
from arborist.cli.bench_serve.load_prompts import synthetic_prompts
from arborist.cli.bench_serve.load_request import LoadRequest
from arborist.cli.bench_serve.load_run import CLIENT_LIMIT, LoadRun, RunResult
from arborist.cli.bench_serve.load_settings import LoadSettings, arrivals_s
from arborist.cli.bench_serve.process_figures import kept, spent
from arborist.cli.bench_serve.process_metrics import ProcessState, read_state, read_urls
from arborist.cli.bench_serve.record import RequestRecord
from arborist.cli.bench_serve.report import ratios
from arborist.cli.bench_serve.sender import Delivery
from arborist.cli.main import main
from arborist.client.completion import ModelCard
from arborist.client.prompt import Speculation
from arborist.core.errors import InvalidArgumentError, ResourceExhaustedError
from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.generation_servicer import GenerationServicer
from arborist.orchestrator.api.validator import RequestLimits
from arborist.v1 import generation_pb2_grpc as pb_grpc

PROMPTS: list[Sequence[int]] = [[1], [2], [3]]


def settings(**changes: object) -> LoadSettings:
    """Ten short requests, with some fields replaced."""
    values: dict[str, object] = {
        "num_requests": 10,
        "duration_s": None,
        "warm_up": 0,
        "max_tokens": 8,
        "temperature": 0.0,
        "seed": 3,
        "ignore_eos": True,
        "timeout_s": 10.0,
        "cancel_share": 0.0,
        "max_in_flight": 100,
    }
    return LoadSettings(**{**values, **changes})  # type: ignore[arg-type]


class FakeSender:
    """A server whose messages come when the test says so."""

    def __init__(self, messages: Sequence[Delivery] = (Delivery(1, None, 0),)) -> None:
        self._messages = messages
        self.may_go = asyncio.Event()
        self.may_go.set()
        self.refuses: set[int] = set()
        self.under_way = 0
        self.most_under_way = 0
        self.sent: list[LoadRequest] = []
        self.closed: list[int] = []

    async def stream(self, request: LoadRequest) -> AsyncGenerator[Delivery, None]:
        """Yields the messages once it may."""
        self.sent.append(request)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if request.index in self.refuses:
                raise ResourceExhaustedError("full", retry_after_ms=1)
            for one in self._messages:
                await self.may_go.wait()
                await asyncio.sleep(0)
                yield one
        finally:
            self.under_way -= 1
            self.closed.append(request.index)


def outcomes(result: RunResult) -> list[str]:
    """What became of every request."""
    return [one.outcome for one in result.records]


def test_points_are_every_load_with_every_mode() -> None:
    """Modes of one load stand side by side; a policy's name is a mode."""
    points = load_points("off,on,chain", "1,4", None)

    assert [one.name for one in points[:3]] == ["off c=1", "on c=1", "chain c=1"]
    assert points[3] == LoadPoint("off", 4)
    assert points[0].options(Speculation(depth=2)) == Speculation(enabled=False)
    fixed = Speculation(True, 2, policy="chain", adaptive=False)
    assert points[2].options(Speculation(depth=2)) == fixed
    assert LoadPoint("adaptive", 1).options(Speculation()) == Speculation(True, adaptive=True)
    assert LoadPoint("default", 1).options(Speculation()) is None
    assert load_points("on", "1", "0.5")[0].name == "on rate=0.5"


def test_modes_of_one_load_take_turns() -> None:
    """Whoever follows a mode that keeps the cores busier is slower: each follows each."""
    points = load_points("off,on,chain", "1,4", None)

    orders = [[one.name for one in in_turn(points, number)] for number in range(7)]
    followed = {pair for order in orders for pair in pairwise(one.split()[0] for one in order[:3])}

    assert orders[0] == [one.name for one in points] == orders[6]
    assert orders[1] == ["chain c=1", "on c=1", "off c=1", "chain c=4", "on c=4", "off c=4"]
    assert len({order[0] for order in orders}) == 3
    assert len(followed) == 6


@pytest.mark.parametrize(
    ("speculation", "concurrency", "rate"),
    [
        ("maybe", "1", None),
        ("on,on", "1", None),
        ("on", "0", None),
        ("on", "x", None),
        ("on", "", None),
        ("on", "1", "0"),
        ("on", "1", "nan"),
        ("on", "1", "inf"),
    ],
)
def test_bad_points_are_refused(speculation: str, concurrency: str, rate: str | None) -> None:
    """The flag is named with its limit."""
    with pytest.raises(InvalidArgumentError, match="--"):
        load_points(speculation, concurrency, rate)


def test_the_seed_fixes_what_is_sent_and_when() -> None:
    """Equal for equal seeds, another order for another repetition, arrivals at the rate asked."""
    sampled = settings(num_requests=400, temperature=1.0, cancel_share=0.5)
    first, again = (list(sampled.requests(PROMPTS, None, 0)) for _ in range(2))
    other = list(sampled.requests(PROMPTS, None, 1))
    leaving = [one.cancel for one in first if one.cancel is not None]

    assert first == again
    assert [one.cancel for one in first] != [one.cancel for one in other]
    assert [one.seed for one in first[:3]] == [3, 4, 5]
    assert 150 < len(leaving) < 250
    assert 70 < sum(one.phase == "prefill" for one in leaving) < 130
    assert next(settings().requests(PROMPTS, None, 0)).seed is None
    times = list(islice(arrivals_s(50.0, 7), 2000))
    assert times == list(islice(arrivals_s(50.0, 7), 2000))
    assert 36 < times[-1] < 44


def test_synthetic_prompts_keep_to_their_span() -> None:
    """Both ends occur; what does not fit the context is refused."""
    model = ModelCard("m", 100, 50, 0, speculation=True)
    lengths = {len(one) for one in synthetic_prompts("3:6", model, 90, 0)}

    assert lengths == {3, 4, 5, 6}
    for span in ("6:3", "0:4", "3", "a:b", "3:11"):
        with pytest.raises(InvalidArgumentError, match="synthetic"):
            synthetic_prompts(span, model, 90, 0)


async def test_a_closed_loop_keeps_its_clients_busy() -> None:
    """Never more under way than clients, every request sent once, failures by reason."""
    sender = FakeSender()
    sender.refuses = {4}
    run = LoadRun(sender, settings().requests(PROMPTS, None, 0), duration_s=None)

    result = await run.closed_loop(3)

    assert sorted(one.index for one in sender.sent) == list(range(10))
    assert sender.most_under_way == 3
    assert sorted(outcomes(result)) == ["completed"] * 9 + ["failed"]
    figures = run_figures(result, ServiceLevel())
    assert figures["errors"] == {"RESOURCE_EXHAUSTED": 1}
    assert result.begin_s <= result.loaded_until_s <= result.end_s


async def test_a_run_ends_with_its_duration() -> None:
    """What is under way then is cancelled and counts as unfinished."""
    sender = FakeSender()
    sender.may_go.clear()
    endless = settings(num_requests=None, duration_s=0.05)
    run = LoadRun(sender, endless.requests(PROMPTS, None, 0), duration_s=0.05)

    result = await run.closed_loop(2)

    assert outcomes(result) == ["unfinished"] * 2
    assert sorted(sender.closed) == [0, 1]
    assert result.loaded_until_s == result.end_s


async def test_an_open_loop_sends_whatever_became_of_the_others() -> None:
    """Requests go out when due; over the bound they are counted, not sent; time counts from due."""
    sender = FakeSender()
    sender.may_go.clear()
    run = LoadRun(sender, settings().requests(PROMPTS, None, 0), duration_s=None)
    running = asyncio.create_task(run.open_loop([0.001 * i for i in range(50)], 6))
    while len(sender.sent) < 6:  # noqa: ASYNC110 - looks at what other tasks do
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)
    sender.may_go.set()
    result = await running

    assert outcomes(result).count("completed") == 6
    assert [one.reason for one in result.records].count(CLIENT_LIMIT) == 4
    assert all((one.first_token_s or 0.0) >= 0.01 for one in result.records[:6])


async def test_clients_leave_when_they_were_to() -> None:
    """Before the first token, or after some; either way the stream is closed."""
    messages = [Delivery(1, None, 0), *([Delivery(2, 1, 4)] * 4)]
    sender = FakeSender(messages)
    leaving = settings(num_requests=60, cancel_share=1.0)
    result = await LoadRun(sender, leaving.requests(PROMPTS, None, 0), duration_s=None).closed_loop(
        4
    )

    assert set(outcomes(result)) == {"cancelled"}
    assert sorted(sender.closed) == list(range(60))
    planned = {one.index: one.cancel for one in sender.sent}
    for index, record in enumerate(result.records):
        cancel = planned[index]
        assert cancel is not None
        assert record.num_tokens <= (1 if cancel.phase == "prefill" else 9)

    held = FakeSender(messages)
    held.may_go.clear()
    only_early = (
        one
        for one in leaving.requests(PROMPTS, None, 0)
        if one.cancel is not None and one.cancel.phase == "prefill"
    )
    result = await LoadRun(held, only_early, duration_s=None).closed_loop(8)
    assert set(outcomes(result)) == {"cancelled"}
    assert not any(one.num_tokens for one in result.records)


def record(due_s: float, *messages: tuple[float, int], outcome: str = "completed") -> RequestRecord:
    """A request with its messages (time, tokens)."""
    times, counts = [at for at, _ in messages], [count for _, count in messages]
    return RequestRecord(
        due_s,
        outcome,  # type: ignore[arg-type]
        end_s=times[-1] if times else due_s,
        message_s=times,
        message_tokens=counts,
        num_rounds=max(len(messages) - 1, 0),
        accepted_tokens=sum(counts[1:]) - max(len(messages) - 1, 0),
        draft_tokens=4 * max(len(messages) - 1, 0),
    )


def test_figures_say_what_clients_saw() -> None:
    """A round's gap is spread over its tokens; goodput wants both limits; tau counts rounds."""
    records = [
        record(0.0, (0.1, 1), (0.3, 4), (0.4, 1)),
        record(1.0, (1.5, 1), (2.5, 2)),
        record(2.0, (2.1, 1), outcome="cancelled"),
        record(2.0, (2.2, 1), (9.0, 3), outcome="unfinished"),
    ]
    result = RunResult(records, 0.0, 4.0, 2.0)

    figures = run_figures(result, ServiceLevel(first_token_ms=200.0, inter_token_ms=100.0))

    assert (figures["completed"], figures["cancelled"], figures["unfinished"]) == (2, 1, 1)
    assert figures["output_tokens_per_s"] == 11 / 4
    assert figures["loaded_tokens_per_s"] == 7 / 2
    assert figures["requests_per_s"] == 0.5
    assert figures["goodput_requests_per_s"] == 0.25
    assert figures["tau"] == pytest.approx(1 + 6 / 4)
    assert figures["draft_tokens_per_round"] == 4.0
    assert figures["ttft_ms"]["p50"] == pytest.approx(300.0)
    # 4 × 50 ms, 1 × 100 ms, 2 × 500 ms.
    assert figures["inter_token_ms"]["p50"] == pytest.approx(50.0)
    assert figures["inter_token_ms"]["mean"] == pytest.approx(1300 / 7, abs=1e-3)
    assert figures["message_gap_ms"]["p50"] == pytest.approx(200.0)
    assert figures["end_to_end_ms"]["p99"] == pytest.approx(1489.0)


def test_runs_without_an_output_have_no_latencies() -> None:
    """Nothing is divided by zero, nothing invented."""
    figures = run_figures(RunResult([record(0.0, outcome="failed")], 0.0, 0.0, 0.0), ServiceLevel())

    assert figures["tau"] is None
    assert figures["ttft_ms"]["p50"] is None
    assert median_figures([figures, figures])["ttft_ms"]["p99"] is None


def test_points_are_compared_run_by_run() -> None:
    """Medians of numbers, sums of errors; ratios against plain decoding, and one plain client."""
    speeds = {
        LoadPoint("off", 1): [10.0, 20.0, 40.0],
        LoadPoint("on", 1): [20.0, 30.0, 80.0],
        LoadPoint("on", 4): [40.0, 80.0, 160.0],
    }
    runs = {
        point: [
            {"loaded_tokens_per_s": one, "errors": {"A": 1}, "ttft_ms": {"p50": one}}
            for one in values
        ]
        for point, values in speeds.items()
    }

    assert median_figures(runs[LoadPoint("off", 1)]) == {
        "loaded_tokens_per_s": 20.0,
        "errors": {"A": 3},
        "ttft_ms": {"p50": 20.0},
    }
    assert ratios(runs) == {"on c=1 / off c=1": 2.0, "on c=4 / off c=1": 4.0}


def test_metrics_say_what_processes_spent_and_kept() -> None:
    """Series of all labels are added up; what a process does not say is left out."""
    text = """
# TYPE process_cpu_seconds counter
process_cpu_seconds_total 2.5
# TYPE arborist_worker_sessions gauge
arborist_worker_sessions{role="target"} 3
# TYPE arborist_num_requests_running gauge
arborist_num_requests_running 1
# TYPE arborist_num_requests_waiting gauge
arborist_num_requests_waiting 2
# TYPE arborist_forward_seconds histogram
arborist_forward_seconds_count{kind="verify"} 4
arborist_forward_seconds_sum{kind="verify"} 0.5
arborist_forward_seconds_count{kind="prefill"} 1
arborist_forward_seconds_sum{kind="prefill"} 0.5
"""
    before, after = ProcessState(cpu_s=0.5, num_forwards=0.0, forward_s=0.0), read_state(text)

    assert after == ProcessState(
        cpu_s=2.5, num_sessions=3, num_requests=3, num_forwards=5, forward_s=1.0
    )
    cost = spent({"w": before}, {"w": after}, rounds=10, took_s=2.0)["w"]
    assert (cost["cpu_s"], cost["cpu_ms_per_round"]) == (2.0, 200.0)
    assert (cost["forwards"], cost["forward_ms"], cost["busy_share"]) == (5, 200.0, 0.5)
    left = kept({"w": ProcessState(num_sessions=0, memory_bytes=5)}, {"w": after})["w"]
    assert left == {
        "num_sessions": [0, 3],
        "num_requests": [None, 3],
        "memory_growth_bytes": None,
    }
    assert read_urls("a=h:1, b=[::1]:2") == {
        "a": "http://h:1/metrics",
        "b": "http://[::1]:2/metrics",
    }
    with pytest.raises(InvalidArgumentError, match="--metrics"):
        read_urls("h:1")


def run(*arguments: str) -> int:
    """Runs the command in this process and returns its exit code."""
    with pytest.raises(SystemExit) as caught:
        main(["bench-serve", *arguments])
    return int(caught.value.code or 0)


async def test_a_server_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report has its schema, every point, medians and all runs."""
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"turns": ["ab"]}\n{"turns": ["c"]}\n')
    generator = ScriptedGenerator([[5], [6, 7], [8]])
    server = grpc.aio.server()
    pb_grpc.add_GenerationServiceServicer_to_server(
        GenerationServicer(Completions(generator, byte_level_tokenizer(), RequestLimits())), server
    )
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    report_file = tmp_path / "report.json"
    arguments = ["--address", address, "--max-tokens", "8", "--num-requests", "6"]
    arguments += ["--repetitions", "2", "--speculation", "off,on", "--concurrency", "1,3"]
    try:
        from_file = ["--prompts", str(questions), "--json", str(report_file)]
        code = await asyncio.to_thread(run, *arguments, *from_file)
        drawn = await asyncio.to_thread(run, *arguments, "--synthetic-prompt-tokens", "2:4")
        nobody = await asyncio.to_thread(
            run, *arguments, "--prompts", str(questions), "--model", "other"
        )
    finally:
        await server.stop(None)
    out, err = capsys.readouterr()

    assert (code, drawn, nobody) == (0, 0, 1), err
    assert "every request of the warm-up failed" in err
    report = json.loads(report_file.read_text())
    assert report["schema"] == "arborist.bench-serve/1"
    assert [one["name"] for one in report["points"]] == ["off c=1", "on c=1", "off c=3", "on c=3"]
    assert {len(one["runs"]) for one in report["points"]} == {2}
    figures = report["points"][3]["figures"]
    assert (figures["completed"], figures["output_tokens"], figures["tau"]) == (6, 24, 3.0)
    assert report["settings"]["prompts"] == "q.jsonl"
    assert report["kept"] is None
    assert "on c=3 / off c=3" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --prompts and --synthetic-prompt-tokens"),
        (["--prompts", "/no/file"], "existing file"),
        (["--synthetic-prompt-tokens", "1:2", "--dtype", "bf16"], "--dtype has no effect"),
        (["--synthetic-prompt-tokens", "1:2", "--start", "--address", "x:1"], "--address and"),
        (["--prompts", "x", "--num-requests", "1", "--duration", "1"], "one of --num-requests"),
        (["--prompts", "x", "--metrics", "x"], "--metrics = x"),
    ],
)
def test_wrong_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """It says what is wrong, without a traceback."""
    code = run(*arguments)
    out, err = capsys.readouterr()

    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_figure_that_some_runs_do_not_have_is_the_median_of_the_others() -> None:
    """A draft that rested all the time ran no forward; `cpu_s` it has all the same."""
    resting = {"processes": {"draft": {"cpu_s": 0.1}}, "errors": {"X": 1}}
    drafting = {"processes": {"draft": {"cpu_s": 0.3, "forwards": 7}}, "errors": {}}

    for runs in ([resting, drafting, drafting], [drafting, resting, drafting]):
        merged = median_figures(runs)
        assert merged["processes"]["draft"] == {"cpu_s": 0.3, "forwards": 7}
        assert merged["errors"] == {"X": 1}
    assert median_figures([resting, resting])["processes"]["draft"] == {"cpu_s": 0.1}
