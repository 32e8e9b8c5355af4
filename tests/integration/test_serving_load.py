"""A server of processes under load: what it counts adds up, and it forgets whoever left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.cancels import Plan, measure
from tests.integration.loopback import PAIR

from arborist.cli.bench_serve.own_server import OwnServerSettings, own_server
from arborist.cli.main import main
from arborist.common.api_key import new_api_key

PAIR_FLAGS = ("--start", f"--target={PAIR / 'target'}", f"--draft={PAIR / 'eagle_head'}")
# Three processes import torch on a machine that is busy with something else.
pytestmark = pytest.mark.timeout(240)


async def test_clients_that_leave_leave_nothing_behind() -> None:
    """400 over gRPC and HTTP, half before the first token: all is back, memory about so."""
    settings = OwnServerSettings(
        target=str(PAIR / "target"),
        draft=str(PAIR / "eagle_head"),
        num_threads=1,
        tracing=False,
    )
    plan = Plan(400, 120, 16, prompt_tokens=(8, 200), max_tokens=40, looks=1, idle_s=0.5)
    async with own_server(settings) as server:
        report = await measure(plan, server)

    assert report["failed"] == {}
    assert report["by_door"] == {
        "grpc": 200,
        "http_stream": 100,
        "http_whole": 50,
        "http_choices": 50,
    }
    assert report["left_before_first_token"] > 100
    assert report["left_after_first_token"] > 100
    assert report["left_behind"] == {}
    assert set(report["processes"]) == {"target", "draft", "controller"}
    for name, figures in report["processes"].items():
        if name == "controller":
            assert figures["num_requests"] == [0, 0]
        else:
            assert figures["num_sessions"] == figures["kv_reserved_tokens"] == [0, 0], name
        assert figures["num_tasks"][0] > 0
        assert figures["num_descriptors"][0] > 0
        assert figures["growth_mb"] < 20, name


def test_a_load_whose_clients_leave_adds_up(tmp_path: Path) -> None:
    """100 requests cancelled, half in the prefill: KV, sessions, tasks, descriptors as before."""
    report_file = tmp_path / "report.json"
    load = ("--num-requests=100", "--concurrency=16", "--cancel-share=1", "--warm-up=32")
    asked = ("--synthetic-prompt-tokens=8:48", "--max-tokens=40", "--speculation=on")
    sampled = ("--temperature=0.8", "--ignore-eos", "--num-threads=1", "--no-tracing")

    with pytest.raises(SystemExit) as caught:
        main(["bench-serve", *PAIR_FLAGS, *load, *asked, *sampled, f"--json={report_file}"])

    assert not caught.value.code
    report = json.loads(report_file.read_text())
    figures = report["points"][0]["figures"]
    assert figures["errors"] == {}
    assert figures["cancelled"] > 80
    assert figures["cancelled"] + figures["completed"] == 100
    assert figures["rounds"] > 0
    assert figures["processes"]["target"]["forwards"] > 0
    assert set(report["kept"]) == {"target", "draft", "controller"}
    for name, kept in report["kept"].items():
        if name == "controller":
            assert kept["num_requests"] == [0, 0]
        else:
            assert kept["num_sessions"] == [0, 0], name
            assert kept["kv_reserved_tokens"] == [0, 0], name
        for counted in ("num_tasks", "num_descriptors"):
            before, after = kept[counted]
            assert after <= before, (name, counted)


def test_a_load_over_http_comes_in_with_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller without Ray serves HTTP, asks for a key, and says how much was accepted."""
    key = new_api_key()
    monkeypatch.setenv("ARBORIST_CONTROLLER__API_KEYS", key)
    report_file = tmp_path / "report.json"
    load = ("--protocol=http", "--num-requests=12", "--concurrency=4", "--warm-up=2")
    asked = ("--synthetic-prompt-tokens=8:48", "--max-tokens=16", "--speculation=on")
    more = ("--num-threads=1", "--no-tracing", f"--json={report_file}", f"--api-key={key}")

    with pytest.raises(SystemExit) as caught:
        main(["bench-serve", *PAIR_FLAGS, *load, *asked, *more])

    assert not caught.value.code
    figures = json.loads(report_file.read_text())["points"][0]["figures"]
    assert (figures["errors"], figures["completed"]) == ({}, 12)
    # Every token but each output's first comes of a round; a last one may be cut.
    assert 0 <= figures["tau"] * figures["rounds"] - (figures["output_tokens"] - 12) <= 12 * 3
    assert figures["draft_tokens_per_round"] > 1
