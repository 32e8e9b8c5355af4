"""What ends the start of a worker, and what it says when it is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from arborist.common.config import ConfigError, parse_config
from arborist.common.running_worker import RunningWorker, _limits, ready_line
from arborist.common.worker_info import WorkerInfo
from arborist.common.worker_main import run_main
from arborist.core.engine import ModelInfo
from arborist.core.errors import ArboristError, UnavailableError
from arborist.draft.__main__ import start_worker as start_draft
from arborist.target.__main__ import start_worker as start_target

PAIR = Path(__file__).resolve().parents[2] / "golden" / "eagle2"


def raising(error: BaseException) -> Callable[[], None]:
    """Returns something to run that fails."""

    def run() -> None:
        raise error

    return run


def test_a_failure_is_one_line_on_stderr() -> None:
    """`python -m` of a worker ends with exit code 1 and no traceback."""
    with pytest.raises(SystemExit) as ended:
        run_main(raising(UnavailableError("target.port = 1: in use")))

    assert ended.value.code == "arborist: target.port = 1: in use"
    assert ended.value.__suppress_context__


def test_ctrl_c_before_serving_ends_quietly() -> None:
    """130, as shells expect."""
    with pytest.raises(SystemExit) as ended:
        run_main(raising(KeyboardInterrupt()))

    assert ended.value.code == 130


@pytest.mark.parametrize("metrics", ["", "http://127.0.0.1:9466/metrics"])
@pytest.mark.parametrize(("context_length", "fits"), [(512, 8), (0, 0)])
def test_the_ready_line_says_where_and_how_much(
    context_length: int, fits: int, metrics: str
) -> None:
    """Address, model, device, dtype, how many sessions fit, and where the metrics are."""
    model = ModelInfo("tiny", "d", 64, 8, 1, context_length, 1, "bfloat16")
    info = WorkerInfo("id", "0.1", "cpu", model, 4096, 0, 0, 0, False)
    running = cast(
        "RunningWorker", SimpleNamespace(info=info, address="127.0.0.1:9102", metrics_url=metrics)
    )

    line = ready_line("target", running)
    said = f" metrics={metrics}" if metrics else ""
    assert line == (
        "ready: target grpc://127.0.0.1:9102 model=tiny device=cpu dtype=bfloat16 "
        f"kv=4096 tokens, fits {fits} sessions of {context_length} tokens{said}"
    )


def settings(role: str, **values: Any) -> Any:
    """Returns a configuration with ports of its own."""
    return parse_config({"test": {role: {"port": 0, "metrics_port": -1} | values}})


@pytest.mark.parametrize("role", ["target", "draft"])
def test_bounds_of_the_configuration_are_those_of_the_worker(role: str) -> None:
    """Also how long a forward may wait for others: a share of its fixed time."""
    values = {"max_rows": 3, "max_sessions": 4, "reattach_grace_s": 1.5, "gather_share": 0.25}

    limits = _limits(getattr(settings(role, **values), role))

    assert {name: getattr(limits, name) for name in values} == values
    for wrong in (-0.1, 4.1, float("nan")):
        with pytest.raises(ConfigError, match=f"{role}.gather_share"):
            settings(role, gather_share=wrong)


@pytest.mark.parametrize("which", ["missing", "empty"])
async def test_a_target_without_model_does_not_start(which: str, tmp_path: Path) -> None:
    """The error names the folder, in one line, and no task or thread of ours stays."""
    folder = tmp_path if which == "empty" else tmp_path / "nothing"
    with pytest.raises(ArboristError) as refused:
        await start_target(settings("target", model=str(folder)))

    assert str(folder) in refused.value.message
    assert "\n" not in refused.value.message
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("missing", ["model", "target_model"])
async def test_a_draft_without_model_does_not_start(missing: str, tmp_path: Path) -> None:
    """Head and target are both needed."""
    values = {"model": str(PAIR / "eagle_head"), "target_model": str(PAIR / "target")}
    values[missing] = str(tmp_path / "nothing")
    with pytest.raises(ArboristError) as refused:
        await start_draft(settings("draft", **values))

    assert refused.value.message.startswith(f"draft.{missing} = {values[missing]}")
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_loaded_worker_stops_and_frees_its_port() -> None:
    """The golden target starts, warms up and stops; the next one may have its port."""
    values = {"model": str(PAIR / "target"), "kv_capacity_tokens": 1024, "num_threads": 1}
    first = await start_target(settings("target", **values))
    await first.stop(0.0)
    port = int(first.address.rpartition(":")[2])
    second = await start_target(settings("target", **{**values, "port": port}))
    await second.stop(0.0)

    assert second.address == first.address
    assert not first.healthy
    assert not second.healthy
