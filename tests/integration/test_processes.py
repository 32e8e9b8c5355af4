"""Workers as processes of their own, killed or frozen in the middle of a stream."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry
from tests.integration.conftest import PROMPTS
from tests.integration.loopback import PAIR, SETTINGS, TestDirectory, until

from arborist.common.config import parse_config
from arborist.common.serving_metrics import ServingMetrics
from arborist.common.telemetry import SpanRecorder
from arborist.orchestrator.controller import Controller
from arborist.orchestrator.generation import DeliveredRound, GenerationRequest, Summary

MAX_TOKENS = 80
ENVIRONMENT = {
    "ARBORIST_TARGET__MODEL": str(PAIR / "target"),
    "ARBORIST_TARGET__REATTACH_GRACE_S": "0.5",
    "ARBORIST_DRAFT__MODEL": str(PAIR / "eagle_head"),
    "ARBORIST_DRAFT__TARGET_MODEL": str(PAIR / "target"),
    "ARBORIST_DRAFT__REATTACH_GRACE_S": "0.5",
}


class WorkerProcess:
    """`arborist serve-target` or `serve-draft` over the golden pair."""

    def __init__(self, role: str) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "arborist.cli.main",
                f"serve-{role}",
                "--port=0",
                "--metrics-port=-1",
                "--num-threads=1",
            ],
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._address = ""

    @property
    def address(self) -> str:
        """Where it listens; waits for its ready line."""
        assert self.process.stdout is not None
        while not self._address:
            line = self.process.stdout.readline()
            assert line, "the worker did not start"
            if match := re.search(r"ready: .*?grpc://(\S+:\d+)", line):
                self._address = match[1]
        return self._address

    def end(self) -> None:
        """Kills it, frozen or not."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def processes() -> Iterator[dict[str, WorkerProcess]]:
    """Two targets and a draft, started together because each needs seconds."""
    started = {
        "first target": WorkerProcess("target"),
        "second target": WorkerProcess("target"),
        "draft": WorkerProcess("draft"),
    }
    try:
        for one in started.values():
            assert one.address
        yield started
    finally:
        for one in started.values():
            one.end()


@asynccontextmanager
async def controlling(targets: list[WorkerProcess], draft: WorkerProcess):
    """A controller of these processes, ready."""
    config = parse_config({"test": {"controller": {"target_deadline_floor_ms": 3000}}})
    controller = Controller(
        config,
        TestDirectory([one.address for one in targets], [draft.address]),
        metrics=ServingMetrics(CollectorRegistry()),
        recorder=SpanRecorder(),
        connection=SETTINGS,
    )
    try:
        await controller.start()
        await controller.wait_ready(60.0, want_draft=True)
        yield controller
    finally:
        await controller.stop(0.0)


async def decode(
    controller: Controller, act: Callable[[], Awaitable[None]]
) -> tuple[list[int], Summary]:
    """Runs a request; `act` is awaited after the third round."""
    generation = controller.generate(GenerationRequest(PROMPTS[0], MAX_TOKENS, ignore_eos=True))
    tokens: list[int] = []
    summary = None
    try:
        async for event in generation:
            if isinstance(event, DeliveredRound):
                tokens += event.token_ids
                if event.round_index == 2:
                    await act()
            elif isinstance(event, Summary):
                summary = event
    finally:
        await generation.aclose()
    assert summary is not None
    return tokens, summary


@pytest.mark.timeout(300)  # Starting three processes takes long on a busy machine.
async def test_processes_lost_mid_stream_change_no_token(processes, reference):
    """Draft and target frozen, a target killed, a draft killed: the tokens of `generate`."""
    first, second, draft = processes.values()
    expected = reference(PROMPTS[0], MAX_TOKENS)
    frozen: list[WorkerProcess] = []

    async def freeze_draft() -> None:
        draft.process.send_signal(signal.SIGSTOP)

    async def freeze_target() -> None:
        (busy,) = (one for one in controller.workers.targets if one.sessions)
        frozen.append(first if busy.connection.address == first.address else second)
        frozen[0].process.send_signal(signal.SIGSTOP)

    async def kill_target() -> None:
        first.process.kill()

    async def kill_draft() -> None:
        draft.process.kill()

    async with controlling([first, second], draft) as controller:
        await until(lambda: len(controller.workers.targets) == 2)
        tokens, summary = await decode(controller, freeze_draft)
        assert not controller.workers.drafts
        draft.process.send_signal(signal.SIGCONT)
        assert tokens == expected
        assert summary.speculation.rounds_without_draft > 0
        await until(lambda: controller.workers.drafts, 30.0)

        tokens, _ = await decode(controller, freeze_target)
        assert len(controller.workers.targets) == 1
        frozen[0].process.send_signal(signal.SIGCONT)
        assert tokens == expected
        await until(lambda: len(controller.workers.targets) == 2, 30.0)

        tokens, summary = await decode(controller, kill_target)
        assert tokens == expected
        assert summary.speculation.draft_tokens > 0
        await until(lambda: len(controller.workers.targets) == 1)

        tokens, summary = await decode(controller, kill_draft)
        assert tokens == expected
        assert summary.speculation.rounds_without_draft > 0
        await until(lambda: not controller.workers.drafts)
