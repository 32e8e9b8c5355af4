"""`arborist serve-target` and `serve-draft` as people run them: processes, ports, signals."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.contract.workers import DRAFT, TARGET, Commands, Stream
from tests.ray.processes import descendants, still_alive

from arborist.common import target_wire
from arborist.common.attach import Attach, StreamLane
from arborist.common.server import channel_options
from arborist.core.errors import UnavailableError
from arborist.v1 import draft_pb2, draft_pb2_grpc, target_pb2_grpc

PAIR = Path(__file__).resolve().parents[1] / "golden" / "eagle2"
TARGET_ARGUMENTS = ("serve-target", f"--model={PAIR / 'target'}")
DRAFT_ARGUMENTS = (
    "serve-draft",
    f"--model={PAIR / 'eagle_head'}",
    f"--target-model={PAIR / 'target'}",
)
SMALL = ("--port=0", "--metrics-port=-1", "--num-threads=1", "--kv-capacity-tokens=4096")
READY = re.compile(
    r"ready: (?P<role>draft|target) grpc://(?P<address>127\.0\.0\.1:\d+) model=\S+ device=cpu "
    r"dtype=float32 kv=4096 tokens, fits \d+ sessions of \d+ tokens\n"
)
TIMEOUT_S = 90.0

# Imports alone take most of it on a machine that is busy with something else.
pytestmark = pytest.mark.timeout(240)


async def start(*arguments: str) -> asyncio.subprocess.Process:
    """Starts a command with its output in pipes."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "arborist.cli.main",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(*arguments: str) -> tuple[int, str, str]:
    """Runs a command to its end; returns exit code, stdout, stderr."""
    process = await start(*arguments)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def ready(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Starts a worker and yields it with its address once it says that it is ready."""
    process = await start(*arguments, *SMALL)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(TIMEOUT_S):
            line = (await process.stdout.readline()).decode()
        match = READY.fullmatch(line)
        assert match is not None, (line, await _errors(process))
        yield process, match["address"]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _errors(process: asyncio.subprocess.Process) -> str:
    if process.returncode is None:
        process.kill()
    return (await process.communicate())[1].decode()


async def stop(process: asyncio.subprocess.Process, one: signal.Signals) -> tuple[int, str]:
    """Signals a worker; returns exit code and stderr. No process of it is left."""
    family = descendants(process.pid)
    process.send_signal(one)
    async with asyncio.timeout(60.0):
        _, err = await process.communicate()
    assert still_alive(family, 2.0) == []
    assert process.returncode is not None
    return process.returncode, err.decode()


async def _is_serving(channel: grpc.aio.Channel, service: str) -> bool:
    request = health_pb2.HealthCheckRequest(service=service)
    answer = await health_pb2_grpc.HealthStub(channel).Check(request)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_a_target_process_serves_and_ends_with_sigterm() -> None:
    """Ready line, SERVING, a round on a stream; SIGTERM ends it cleanly, exit code 0."""
    async with ready(*TARGET_ARGUMENTS) as (process, address):
        async with grpc.aio.insecure_channel(address, options=channel_options(1 << 24)) as channel:
            assert await _is_serving(channel, TARGET)
            stream = Stream(target_pb2_grpc.TargetServiceStub(channel).Connect(), target_wire)
            await stream.attach(Attach("c", StreamLane.ROUND))
            commands = Commands(stream)
            _, prefilled = await stream.ask(commands.open_target(), commands.prefill([1, 17, 42]))
            committed = [1, 17, 42, prefilled.root]
            verified = (await stream.ask(commands.verify(committed)))[0]
            assert verified.features.shape[0] == 1
            await stream.ask(commands.release_target())
            code, err = await stop(process, signal.SIGTERM)
            assert isinstance(await stream.end(), UnavailableError)

        assert code == 0
        assert "Traceback" not in err


async def test_a_draft_process_serves_and_ends_with_ctrl_c() -> None:
    """Ready line, SERVING, the features it wants; Ctrl-C ends it cleanly."""
    async with ready(*DRAFT_ARGUMENTS) as (process, address):
        async with grpc.aio.insecure_channel(address, options=channel_options(1 << 24)) as channel:
            assert await _is_serving(channel, DRAFT)
            stub = draft_pb2_grpc.DraftServiceStub(channel)
            info = await stub.GetInfo(draft_pb2.DraftServiceGetInfoRequest())
            assert info.feature_spec.HasField("final_norm")
            assert info.feature_width > 0
        code, err = await stop(process, signal.SIGINT)

        assert code == 0
        assert "Traceback" not in err


async def test_a_port_in_use_is_one_line() -> None:
    """It names the setting, the port and what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, out, err = await run(*DRAFT_ARGUMENTS, f"--port={port}", "--metrics-port=-1")

    assert code == 1
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"arborist: draft.port = {port}: cannot listen on 127.0.0.1:{port}")
    assert "choose another port" in err


async def test_a_missing_model_folder_is_one_line(tmp_path: Path) -> None:
    """It names the setting and the folder."""
    missing = tmp_path / "nothing"
    code, out, err = await run("serve-target", f"--model={missing}", *SMALL)

    assert code != 0
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"arborist: target.model = {missing}: no such folder")
