"""Clients that leave, and clients that do not read."""

import asyncio
import json
from typing import Any

import pytest
from tests.contract.scripted_generator import ScriptedGenerator
from tests.unit.api.http_app import LIMITS, TOKENIZER, app_of, spoken

from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.incoming import IncomingRequest, TextPrompt
from arborist.orchestrator.api.openai.choices import Choices
from arborist.orchestrator.api.openai.http_limits import HttpLimits

PATHS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "abc"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "abc"}]},
}


class Connection:
    """One request at the level of ASGI."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        self.path = path
        self.leave = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.sent: list[dict[str, Any]] = []
        self._body: bytes | None = json.dumps(body).encode()

    async def receive(self) -> dict[str, Any]:
        """Gives the body, then nothing until the client leaves."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        """Takes a message, when the client reads."""
        await self.reads.wait()
        self.sent.append(message)

    def call(self, generator: ScriptedGenerator, **limits: Any) -> "asyncio.Task[None]":
        """Runs the application on it."""
        scope = {
            "type": "http",
            "method": "POST",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "headers": [],
        }
        app = app_of(generator, limits=HttpLimits(**limits))
        return asyncio.ensure_future(app(scope, self.receive, self.send))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("hold_at", [0, 1])
@pytest.mark.parametrize("n", [1, 2])
async def test_a_client_that_leaves_ends_its_request(
    path: str, stream: bool, hold_at: int, n: int
) -> None:
    """Wherever it is: before the first token and between rounds, whole and streamed."""
    generator = ScriptedGenerator(spoken(["a", "b"]), hold_at=hold_at)
    connection = Connection(path, {**PATHS[path], "stream": stream, "n": n})
    call = connection.call(generator)
    await asyncio.wait_for(generator.held.wait(), 5)
    before = len(asyncio.all_tasks())
    connection.leave.set()
    await asyncio.wait_for(call, 5)

    assert all(one.closed for one in generator.generations)
    assert len(generator.generations) == n
    assert before > len(asyncio.all_tasks()) == 1
    assert not any(one.get("more_body") is False for one in connection.sent)


async def test_a_server_that_stops_ends_its_requests() -> None:
    """Cancelling the call frees the generation too."""
    generator = ScriptedGenerator(hold_at=1)
    call = Connection("/v1/completions", {"prompt": "abc"}).call(generator)
    await asyncio.wait_for(generator.held.wait(), 5)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)

    assert call.cancelled()
    assert generator.generations[0].closed
    assert len(asyncio.all_tasks()) == 1


async def test_a_call_that_is_cancelled_while_it_ends_ends_every_choice() -> None:
    """A second cancellation, while the first choice is ended, leaves no other running."""
    generator = ScriptedGenerator()
    completions = Completions(generator, TOKENIZER, LIMITS)
    asked = IncomingRequest(prompt=TextPrompt("abc"))
    requests = [await completions.validate(asked) for _ in range(3)]

    async def hold() -> None:
        async with Choices(completions, requests):
            generator.held.set()
            await asyncio.Event().wait()

    call = asyncio.create_task(hold())
    await asyncio.wait_for(generator.held.wait(), 5)
    call.cancel()
    while not generator.closed.is_set():  # noqa: ASYNC110 - one step at a time
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)

    assert call.cancelled()
    assert [one.closed for one in generator.generations] == [True] * 3


async def test_a_whole_answer_that_is_not_read_is_dropped() -> None:
    """After a while the call ends, without an answer."""
    connection = Connection("/v1/completions", {"prompt": "abc"})
    connection.reads.clear()
    await asyncio.wait_for(connection.call(ScriptedGenerator(), client_timeout_s=0.05), 5)

    assert connection.sent == []


@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_does_not_read_stops_the_reading_of_rounds(n: int) -> None:
    """Nothing piles up behind it; after a while it loses its request."""
    generator = ScriptedGenerator(spoken("abcdefghijklmnopqrstuvwxyz"))
    connection = Connection("/v1/completions", {"prompt": "abc", "stream": True, "n": n})
    connection.reads.clear()
    await asyncio.wait_for(connection.call(generator, client_timeout_s=0.05), 5)

    assert connection.sent == []
    assert all(one.closed for one in generator.generations)
    assert sum(one.num_given for one in generator.generations) <= 5 * n


@pytest.mark.parametrize("path", [*PATHS, "/tokenize", "/detokenize"])
async def test_a_body_that_does_not_arrive_is_not_waited_for(path: str) -> None:
    """408 after a while; nothing starts."""
    generator = ScriptedGenerator()
    connection = Connection(path, {})
    connection._body = None
    await asyncio.wait_for(connection.call(generator, client_timeout_s=0.05), 5)

    assert connection.sent[0]["status"] == 408
    assert json.loads(connection.sent[1]["body"])["error"]["code"] == "REQUEST_TIMEOUT"
    assert generator.generations == []
