"""The README's commands and snippets do what it says.

Every command stands in `COMMANDS` with the way it is tried, so that a new one cannot be forgotten.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.documents import REPOSITORY, Document, parse, words
from tests.integration.loopback import patient

from arborist.cli.serve import LOCAL_CONFIG
from arborist.client.call import DEFAULT_ADDRESS
from arborist.common.config import load_config, parse_config
from arborist.common.default_pair import default_pair_directory
from arborist.orchestrator.controller_server import ControllerServer
from arborist.orchestrator.directory import FixedDirectory

README = Document("README.md")
PAIR = default_pair_directory()
QUIET = ("--port", "0", "--metrics-port", "-1", "--num-threads", "1")

# Workers are processes that load a model first, on a machine that may be busy.
pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Make:
    """Shown by `make -n`; a test of its own runs what it calls."""

    recipe: str
    run_by: str = ""


@dataclass(frozen=True)
class Run:
    """Run for real; `{address}` is the server's."""

    extra: tuple[str, ...] = ()
    answer: str = ""


@dataclass(frozen=True)
class Worker:
    """Run for real until it is ready, with small models on a CPU in place of those named."""

    role: str
    replaced: dict[str, str] = field(default_factory=dict)


LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
SMALL_TARGET = {LLAMA: str(PAIR / "target"), "cuda:0": "cpu"}
SMALL_DRAFT = {**SMALL_TARGET, "./eagle-head": str(PAIR / "head"), "cuda:1": "cpu"}
COMMANDS: dict[str, Make | Run | Worker] = {
    "make demo": Make("arborist demo", "tests/ray/test_demo.py"),
    "make test": Make("python -m pytest"),
    "make serve": Make("arborist serve --config deploy/ray/local.yaml", "tests/ray/test_serve.py"),
    '.venv/bin/arborist generate --chat "What is a mutex?" --max-tokens 64': Run(
        ("--address", "{address}"), "finish_reason="
    ),
    '.venv/bin/arborist generate --local --chat "What is a mutex?" --speculation off --json': Run(
        ("--max-tokens", "16"), '"draft_tokens": 0'
    ),
    f"arborist serve-target --model {LLAMA} --device cuda:0 --dtype bfloat16": Worker(
        "target", SMALL_TARGET
    ),
    f"arborist serve-draft --model ./eagle-head --target-model {LLAMA} --device cuda:1 "
    "--dtype bfloat16": Worker("draft", SMALL_DRAFT),
}


def of_way(kind: type[Make] | type[Run] | type[Worker]) -> list[Any]:
    """The commands that are tried in one way."""
    return [pytest.param(one, way, id=one) for one, way in COMMANDS.items() if type(way) is kind]


def arborist(arguments: list[str]) -> list[str]:
    """The command line that runs this environment's `arborist`."""
    return [sys.executable, "-m", "arborist.cli.main", *arguments]


@contextmanager
def worker_processes() -> Iterator[dict[str, str]]:
    """Addresses by role of the workers that the README starts, once they are ready."""
    processes: dict[str, subprocess.Popen[str]] = {}
    try:
        for command, way in COMMANDS.items():
            if isinstance(way, Worker):
                arguments = [way.replaced.get(one, one) for one in words(command)[1:]]
                processes[way.role] = subprocess.Popen(
                    arborist([*arguments, *QUIET]),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
        yield {role: ready_address(one) for role, one in processes.items()}
    finally:
        for one in processes.values():
            one.terminate()
        for one in processes.values():
            one.communicate()


def ready_address(process: "subprocess.Popen[str]") -> str:
    """Waits for a worker's ready line and returns its address."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        if match := re.search(r"ready: .*?grpc://(\S+:\d+)", line):
            return match[1]
        lines.append(line)
    raise AssertionError(f"the worker ended before it was ready: {''.join(lines)}")


@contextmanager
def controller(workers: dict[str, str]) -> Iterator[str]:
    """A controller of these workers, on an event loop of its own; yields its address."""
    settings = {"controller": {"grpc_port": 0, "metrics_port": -1}}
    config = patient(parse_config({"test": settings}))
    directory = FixedDirectory([workers["target"]], [workers["draft"]])
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="controller")
    thread.start()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    async def start() -> ControllerServer:
        server = ControllerServer(config, directory)
        await server.start()
        await server.controller.wait_ready(60.0, want_draft=True)
        return server

    server: ControllerServer | None = None
    try:
        server = run(start())
        yield server.address
    finally:
        if server is not None:
            run(server.stop(0.0))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the README's workers serve, behind a controller."""
    with worker_processes() as workers, controller(workers) as served:
        yield served


def test_every_command_of_the_readme_is_tried() -> None:
    """A command that is new or gone must come into, or go from, the table above."""
    assert sorted(README.commands()) == sorted(COMMANDS)


@pytest.mark.parametrize(("command", "way"), of_way(Make))
def test_make_calls_what_the_readme_says(command: str, way: Make) -> None:
    """The recipe is there, its `arborist` command is valid, and a test runs it."""
    # The variables of a `make test ARGS=…` around this test would change what its child shows.
    outside = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    shown = subprocess.run(
        [*command.split(), "-n"],
        cwd=REPOSITORY,
        env=outside,
        capture_output=True,
        text=True,
        check=True,
    )
    recipe = shown.stdout.strip().splitlines()[-1].strip()

    assert recipe == f".venv/bin/{way.recipe}"
    if way.run_by:
        parse(recipe)
        assert f'"{words(recipe)[1]}"' in (REPOSITORY / way.run_by).read_text(encoding="utf-8")


@pytest.mark.parametrize(("command", "way"), of_way(Run))
def test_commands_answer(command: str, way: Run, address: str) -> None:
    """Each command of the README ends well and prints what it promises."""
    extra = [one.format(address=address) for one in way.extra]
    run = subprocess.run(
        arborist([*words(command)[1:], *extra]),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()
    assert way.answer in run.stdout + run.stderr
    if "--json" in command:
        assert json.loads(run.stdout)["finish_reason"] in ("eos", "length")


@pytest.mark.parametrize(("command", "way"), of_way(Worker))
def test_bare_workers_are_valid_as_written(command: str, way: Worker, address: str) -> None:
    """The command holds without what was replaced, and its small twin serves the others here."""
    parse(command)

    assert words(command)[1] == f"serve-{way.role}"
    assert set(way.replaced) >= {one for one in words(command) if "cuda" in one}


@pytest.mark.parametrize("snippet", README.blocks("python"))
def test_snippets_run(snippet: str, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python of the README runs as it stands, but for the server's address."""
    assert DEFAULT_ADDRESS in snippet

    exec(compile(snippet.replace(DEFAULT_ADDRESS, address), "README.md", "exec"), {})

    shown = re.fullmatch(r"(.*?)([\d.]+)\n", capsys.readouterr().out, re.DOTALL)
    assert shown
    assert shown[1]
    assert float(shown[2]) >= 1.0


def test_addresses_are_the_default_ones() -> None:
    """What the README says of addresses is what `make serve` and the client use."""
    controller = load_config(REPOSITORY / LOCAL_CONFIG, {}).controller
    (line,) = [one for one in README.text.splitlines() if one.startswith("make serve")]

    assert f"HTTP {controller.http_host}:{controller.http_port}" in line
    assert f"gRPC {controller.grpc_host}:{controller.grpc_port}" in line
    assert f"{controller.grpc_host}:{controller.grpc_port}" == DEFAULT_ADDRESS


def test_environment_variables_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ARBORIST_… setting that the README shows is one, with a value it may have."""
    shown = re.findall(r"\b(ARBORIST_(\w+?)__(\w+))=([^\s`]+)", README.text)
    assert shown
    for name, section, key, value in shown:
        monkeypatch.setenv(name, value)
        settings = getattr(load_config(None, {}), section.lower())
        assert str(getattr(settings, key.lower())) == value
