"""256 clients at once, over both doors of a server with the settings it has by default."""

import asyncio
import json
import random
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from tests.integration.http_server import http_server
from tests.integration.loopback import PAIR, until

from arborist.cli.local import LocalModel
from arborist.cli.worker_process import WorkerProcess
from arborist.client import AsyncClient, Speculation
from arborist.common.config import ArboristConfig, parse_config
from arborist.orchestrator.api.incoming import IncomingRequest, TokenPrompt
from arborist.orchestrator.controller_server import ControllerServer
from arborist.orchestrator.directory import FixedDirectory
from arborist.orchestrator.generation import SpeculationOptions
from arborist.orchestrator.round import Round

NUM_STREAMS = 256
NUM_TOKENS = 48
PROMPT_TOKENS = (16, 512)
# Below this margin between the two best tokens rounding may decide (DESIGN §2).
TIE_MARGIN = 1e-4
SPECULATION: tuple[dict[str, Any], ...] = (
    {},
    {"enabled": False},
    {"enabled": True, "adaptive": True},
    {"policy": "chain"},
)


@dataclass(frozen=True)
class Stream:
    """What one client asks for.

    Attributes:
        prompt: Token ids.
        sampling: Temperature, seed, top_p; empty = greedy.
        speculation: Options of drafting.
        leaves_after: Tokens after which it leaves; None = never.
    """

    prompt: list[int]
    sampling: Mapping[str, Any]
    speculation: Mapping[str, Any]
    leaves_after: int | None


def streams() -> list[Stream]:
    """Prompts of all lengths, half of them sampled, a tenth leaving early or before any token."""
    rng = random.Random(256)
    made: list[Stream] = []
    for number in range(NUM_STREAMS):
        seeded = {"temperature": rng.choice((0.7, 1.0)), "seed": rng.getrandbits(63)}
        made.append(
            Stream(
                prompt=[rng.randrange(5, 512) for _ in range(rng.randint(*PROMPT_TOKENS))],
                sampling={**seeded, "top_p": 0.95} if number % 2 else {},
                speculation=SPECULATION[number // 2 % len(SPECULATION)],
                leaves_after=rng.choice((0, rng.randrange(1, NUM_TOKENS)))
                if number % 10 == 9
                else None,
            )
        )
    return made


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ArboristConfig:
    """Every setting as it is by default, but for the models and their ports."""
    target = tmp_path_factory.mktemp("pair") / "target"
    shutil.copytree(PAIR / "target", target)
    shape = json.loads((target / "config.json").read_text())
    longer = {**shape, "max_position_embeddings": 2 * shape["max_position_embeddings"]}
    (target / "config.json").write_text(json.dumps(longer))
    models = {
        "target": {"model": str(target), "name": "golden"},
        "draft": {"model": str(PAIR / "eagle_head")},
        "controller": {"grpc_port": 0, "metrics_port": -1},
    }
    return parse_config({"test": models})


@asynccontextmanager
async def served(config: ArboristConfig) -> AsyncIterator[tuple[ControllerServer, str]]:
    """A controller with both doors, and its workers as processes; gives the HTTP door's URL."""
    target, draft = config.target.resolved_model(), config.draft.resolved_model()
    common = ("--port=0", "--metrics-port=-1", "--num-threads=1")
    async with AsyncExitStack() as stack:
        addresses: list[str] = []
        for role, flags in (
            ("target", (f"--model={target}", "--name=golden")),
            ("draft", (f"--model={draft}", f"--target-model={target}")),
        ):
            process = WorkerProcess([f"serve-{role}", *common, *flags])
            stack.push_async_callback(process.stop, 10.0)
            addresses.append(await process.start(180.0))
        server = ControllerServer(config, FixedDirectory((addresses[0],), (addresses[1],)))
        await server.start()
        stack.push_async_callback(server.stop, 0.0)
        await server.controller.wait_ready(60.0, want_draft=True)
        yield server, await stack.enter_async_context(http_server(server.http_app()))


async def over_grpc(client: AsyncClient, stream: Stream) -> list[int]:
    """Returns what the client got."""
    tokens: list[int] = []
    output = client.generate(
        stream.prompt,
        max_tokens=NUM_TOKENS,
        ignore_eos=True,
        speculation=Speculation(**stream.speculation),
        **stream.sampling,
    )
    async with output:
        async for round_ in output:
            tokens += round_.token_ids
            if stream.leaves_after and len(tokens) >= stream.leaves_after:
                break
    return tokens


async def over_http(client: httpx.AsyncClient, stream: Stream) -> list[int]:
    """The same over HTTP."""
    tokens: list[int] = []
    body = {
        "prompt": stream.prompt,
        "max_tokens": NUM_TOKENS,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
        "speculation": dict(stream.speculation),
        **stream.sampling,
    }
    async with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            for choice in event["choices"]:
                tokens += choice.get("token_ids") or []
            if stream.leaves_after and len(tokens) >= stream.leaves_after:
                break
    return tokens


async def leaving(getting: Any, after_s: float | None) -> list[int]:
    """Returns what a client got who may leave after a while, whatever it got by then."""
    try:
        return list(await asyncio.wait_for(getting, after_s))
    except TimeoutError:
        return []


def alone(model: LocalModel, stream: Stream, num_tokens: int) -> tuple[list[int], list[float]]:
    """Returns what plain decoding gives to the only session, and how clear each token was."""
    rounds: list[Round] = []
    request = IncomingRequest(
        TokenPrompt(stream.prompt),
        max_tokens=num_tokens,
        ignore_eos=True,
        speculation=SpeculationOptions(enabled=False),
        **stream.sampling,
    )
    model.complete(request, on_round=rounds.append)
    return [token for one in rounds for token in one.tokens], [one.min_margin for one in rounds]


@pytest.mark.slow
@pytest.mark.timeout(600)  # Half a minute where nothing else runs.
def test_256_streams_at_once_get_what_each_would_get_alone(config: ArboristConfig) -> None:
    """None fails, and all tokens are those of plain decoding of one session, over both doors."""
    asked = streams()
    got = asyncio.run(_run(config, asked))

    model = LocalModel.load(config, speculation=False)
    ties = 0
    for stream, tokens in zip(asked, got, strict=True):
        assert len(tokens) == NUM_TOKENS or stream.leaves_after is not None
        if not tokens:
            continue
        expected, margins = alone(model, stream, len(tokens))
        pairs = zip(tokens, expected, strict=True)
        first = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
        if first is not None:
            assert margins[first] < TIE_MARGIN
            ties += 1
    assert ties <= 1
    early = [
        len(tokens)
        for stream, tokens in zip(asked, got, strict=True)
        if stream.leaves_after is not None
    ]
    assert len(early) == NUM_STREAMS // 10
    assert min(early) < NUM_TOKENS


async def _run(config: ArboristConfig, asked: list[Stream]) -> list[list[int]]:
    limits = httpx.Limits(max_connections=None)
    async with (
        served(config) as (server, url),
        AsyncClient(server.address) as grpc_client,
        httpx.AsyncClient(base_url=url, limits=limits, timeout=None) as http_client,
    ):
        rng = random.Random(1)

        async def run(number: int, stream: Stream) -> list[int]:
            # Whoever wants no token leaves at any time, waiting or in the prefill.
            after_s = rng.uniform(0, 5) if stream.leaves_after == 0 else None
            if number % 4 < 2:
                return await leaving(over_grpc(grpc_client, stream), after_s)
            return await leaving(over_http(http_client, stream), after_s)

        got = await asyncio.gather(*(run(*one) for one in enumerate(asked)))
        controller = server.controller
        await until(lambda: controller.load() == (0, 0))
        (target,), (draft,) = controller.workers.targets, controller.workers.drafts
        await until(lambda: not target.sessions and not draft.sessions)
        return got
