"""A server of processes under load: what it counts adds up, and it forgets whoever left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.integration.loopback import PAIR

from arborist.cli.main import main
from arborist.common.api_key import new_api_key

PAIR_FLAGS = ("--start", f"--target={PAIR / 'target'}", f"--draft={PAIR / 'eagle_head'}")
# Three processes import torch on a machine that is busy with something else.
pytestmark = pytest.mark.timeout(240)


def test_clients_that_leave_at_any_point_leave_nothing_behind(tmp_path: Path) -> None:
    """300 requests cancelled, half in the prefill: KV, sessions, tasks, descriptors as before."""
    report_file = tmp_path / "report.json"
    load = ("--num-requests=300", "--concurrency=16", "--cancel-share=1", "--warm-up=32")
    asked = ("--synthetic-prompt-tokens=8:48", "--max-tokens=40", "--speculation=on")
    sampled = ("--temperature=0.8", "--ignore-eos", "--num-threads=1", "--no-tracing")

    with pytest.raises(SystemExit) as caught:
        main(["bench-serve", *PAIR_FLAGS, *load, *asked, *sampled, f"--json={report_file}"])

    assert not caught.value.code
    report = json.loads(report_file.read_text())
    figures = report["points"][0]["figures"]
    assert figures["errors"] == {}
    assert figures["cancelled"] > 250
    assert figures["cancelled"] + figures["completed"] == 300
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
