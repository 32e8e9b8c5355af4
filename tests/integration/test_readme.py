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
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from tests.documents import REPOSITORY, Document, parse, words
from tests.integration.http_server import http_server
from tests.integration.loopback import patient

from arborist.cli.serve import LOCAL_CONFIG
from arborist.client.call import DEFAULT_ADDRESS
from arborist.common.config import DEFAULT_MODEL_NAME, load_config, parse_config
from arborist.common.default_pair import default_pair_directory
from arborist.orchestrator.controller_server import ControllerServer
from arborist.orchestrator.directory import FixedDirectory

README = Document("README.md")
HTTP_GUIDE = Document("docs/openai.md")
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
class Curl:
    """Sent for real, to the server's HTTP address."""

    answer: str


@dataclass(frozen=True)
class Addresses:
    """Where the controller of the README's workers serves."""

    grpc: str
    http: str

    def put_into(self, text: str) -> str:
        """Returns a text of the README with these in place of the default ones."""
        return text.replace(DEFAULT_ADDRESS, self.grpc).replace(DEFAULT_HTTP_ADDRESS, self.http)


@dataclass(frozen=True)
class Worker:
    """Run for real until it is ready, with small models on a CPU in place of those named."""

    role: str
    replaced: dict[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()


DEFAULT_HTTP_ADDRESS = "127.0.0.1:8000"
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
SMALL_TARGET = {LLAMA: str(PAIR / "target"), "cuda:0": "cpu"}
SMALL_DRAFT = {**SMALL_TARGET, "./eagle-head": str(PAIR / "head"), "cuda:1": "cpu"}
COMMANDS: dict[str, Make | Run | Curl | Worker] = {
    "make demo": Make("arborist demo", "tests/ray/test_demo.py"),
    "make test": Make("python -m pytest"),
    "make serve": Make("arborist serve --config deploy/ray/local.yaml", "tests/ray/test_serve.py"),
    '.venv/bin/arborist generate --chat "What is a mutex?" --max-tokens 64': Run(
        ("--address", "{address}"), "finish_reason="
    ),
    '.venv/bin/arborist generate --local --chat "What is a mutex?" --speculation off --json': Run(
        ("--max-tokens", "16"), '"draft_tokens": 0'
    ),
    f"curl http://{DEFAULT_HTTP_ADDRESS}/v1/chat/completions -d "
    """'{"messages": [{"role": "user", "content": "What is a mutex?"}]}'""": Curl(
        '"object":"chat.completion"'
    ),
    f"arborist serve-target --model {LLAMA} --device cuda:0 --dtype bfloat16": Worker(
        "target",
        SMALL_TARGET,
        # What `make serve` calls it.
        ("--name", DEFAULT_MODEL_NAME),
    ),
    f"arborist serve-draft --model ./eagle-head --target-model {LLAMA} --device cuda:1 "
    "--dtype bfloat16": Worker("draft", SMALL_DRAFT),
}


def of_way(kind: type[Make] | type[Run] | type[Curl] | type[Worker]) -> list[Any]:
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
                    arborist([*arguments, *QUIET, *way.extra]),
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
def controller(workers: dict[str, str]) -> Iterator[Addresses]:
    """A controller of these workers, on an event loop of its own; yields its addresses."""
    settings = {"controller": {"grpc_port": 0, "metrics_port": -1}}
    config = patient(parse_config({"test": settings}))
    directory = FixedDirectory([workers["target"]], [workers["draft"]])
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="controller")
    thread.start()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    stack = AsyncExitStack()

    async def start() -> Addresses:
        server = ControllerServer(config, directory)
        await server.start()
        stack.push_async_callback(server.stop, 0.0)
        await server.controller.wait_ready(60.0, want_draft=True)
        url = await stack.enter_async_context(http_server(server.http_app()))
        return Addresses(server.address, url.removeprefix("http://"))

    try:
        yield run(start())
    finally:
        run(stack.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Addresses]:
    """Where the README's workers serve, behind a controller."""
    with worker_processes() as workers, controller(workers) as addresses:
        yield addresses


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
def test_commands_answer(command: str, way: Run, served: Addresses) -> None:
    """Each command of the README ends well and prints what it promises."""
    extra = [one.format(address=served.grpc) for one in way.extra]
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
def test_bare_workers_are_valid_as_written(command: str, way: Worker, served: Addresses) -> None:
    """The command holds without what was replaced, and its small twin serves the others here."""
    parse(command)

    assert words(command)[1] == f"serve-{way.role}"
    assert set(way.replaced) >= {one for one in words(command) if "cuda" in one}


def curl(command: str) -> httpx.Response:
    """Sends what curl would send; it need not be there."""
    program, url, *options = words(command)
    assert program == "curl"
    if not options:
        return httpx.get(url, timeout=60)
    option, body = options
    assert option == "-d"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    return httpx.post(url, content=body, headers=headers, timeout=60)


@pytest.mark.parametrize(("command", "way"), of_way(Curl))
def test_requests_are_answered(command: str, way: Curl, served: Addresses) -> None:
    """Each `curl` of the README gets what it promises."""
    response = curl(served.put_into(command))

    assert response.status_code == 200, response.text
    assert way.answer in response.text


@pytest.mark.parametrize("command", HTTP_GUIDE.commands())
def test_requests_of_the_guide_are_answered(command: str, served: Addresses) -> None:
    """Each `curl` of the guide to HTTP is answered with 200."""
    response = curl(served.put_into(command))

    assert response.status_code == 200, response.text


@pytest.mark.parametrize("snippet", [*README.blocks("python"), *HTTP_GUIDE.blocks("python")])
def test_snippets_run(snippet: str, served: Addresses, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python of the README runs as it stands, but for the server's address."""
    assert DEFAULT_ADDRESS in snippet or DEFAULT_HTTP_ADDRESS in snippet

    exec(compile(served.put_into(snippet), "README.md", "exec"), {})

    shown = re.fullmatch(r"(.*?)([\d.]+)\n", capsys.readouterr().out, re.DOTALL)
    assert shown
    assert shown[1]
    assert float(shown[2]) >= 1.0


def test_addresses_are_the_default_ones() -> None:
    """What the README says of addresses is what `make serve` and the client use."""
    controller = load_config(REPOSITORY / LOCAL_CONFIG, {}).controller
    (line,) = [one for one in README.text.splitlines() if one.startswith("make serve")]

    assert f"HTTP {DEFAULT_HTTP_ADDRESS}" in line
    assert f"{controller.http_host}:{controller.http_port}" == DEFAULT_HTTP_ADDRESS
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
