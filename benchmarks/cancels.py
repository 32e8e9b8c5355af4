"""Clients that leave: what do they leave behind?

Sends requests to a server and cancels every one of them at a random point: half before the first
token, half while tokens come; half over gRPC, half over HTTP. Then compares what the server's
processes hold with what they held after a warm-up of the same kind, which fills the prefix caches.

    python -m benchmarks.cancels --num-requests 10000 --json cancels.json
    python -m benchmarks.cancels --address 127.0.0.1:9000 --http-url http://127.0.0.1:8000 \
        --metrics controller=127.0.0.1:9464,draft=127.0.0.1:9465,target=127.0.0.1:9466

Without --address it brings up a target, a draft and a controller of its own. The exit status is 1
when anything but memory is not back where it was, or memory grew by more than --max-growth-mb. The
same seed sends the same requests; how much of an answer comes in that time, the machine decides.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

import numpy as np
import typer

from arborist.cli.bench_serve.own_server import OwnServer, OwnServerSettings, own_server
from arborist.cli.bench_serve.process_metrics import ProcessMetrics, ProcessState, read_urls
from arborist.cli.machine import machine_facts
from arborist.client.async_client import AsyncClient
from arborist.core.errors import ArboristError, UnavailableError

# How a request is made: an event stream, an answer in one piece, two choices merged into a stream.
Door: TypeAlias = Literal["grpc", "http_stream", "http_whole", "http_choices"]
_DOORS: tuple[Door, ...] = (
    "grpc",
    "http_stream",
    "grpc",
    "http_whole",
    "grpc",
    "http_stream",
    "grpc",
    "http_choices",
)
# Requests that a server refuses leave nothing behind, and show nothing.
_MOST_FAILED_SHARE = 0.01
_COUNTS = ("num_sessions", "kv_reserved_tokens", "num_requests", "num_tasks", "num_descriptors")
_SETTLE_S = 15.0
_TIMEOUT_S = 120.0
# What is expected until the first answers have come.
_FIRST_TOKEN_S, _TOKEN_S = 0.1, 0.01


@dataclass(frozen=True, slots=True)
class Visit:
    """One client.

    Attributes:
        door: How it asks.
        prompt: Token ids.
        max_tokens: Length of the answer that it does not wait for.
        seed: Of the sampling; None = greedy.
        early: Whether it leaves before the first token.
        share: How far into that part, in [0, 1).
    """

    door: Door
    prompt: list[int]
    max_tokens: int
    seed: int | None
    early: bool
    share: float


def visits(
    seed: int, stream: int, prompt_tokens: tuple[int, int], max_tokens: int, vocab_size: int
) -> Iterator[Visit]:
    """Yields clients without end; the same arguments give the same ones.

    Args:
        seed: Of everything that is drawn.
        stream: 0 = warm-up, 1 = measured.
        prompt_tokens: Shortest and longest prompt.
        max_tokens: Length of the answers.
        vocab_size: Token ids are below it.
    """
    rng = np.random.default_rng([seed, stream])
    low, high = prompt_tokens
    index = 0
    while True:
        length = int(rng.integers(low, high + 1))
        prompt = rng.integers(0, vocab_size, length).tolist()
        sampled, early, share = rng.random(3)
        yield Visit(
            _DOORS[index % len(_DOORS)],
            prompt,
            max_tokens,
            index if sampled < 0.5 else None,
            bool(early < 0.5),
            float(share),
        )
        index += 1


class Pace:
    """How long the server takes now; running means, in seconds."""

    def __init__(self) -> None:
        """Begins with a guess."""
        self.first_token_s = _FIRST_TOKEN_S
        self.token_s = _TOKEN_S

    def first_token(self, seconds: float) -> None:
        """Takes the time of a first token."""
        self.first_token_s += 0.1 * (seconds - self.first_token_s)

    def tokens(self, count: int, seconds: float) -> None:
        """Takes the time that tokens after the first took."""
        if count:
            self.token_s += 0.1 * (seconds / count - self.token_s)


class Server:
    """Both doors of one server."""

    def __init__(self, client: AsyncClient, http_url: str) -> None:
        """Joins them.

        Args:
            client: Of the gRPC API.
            http_url: Of the HTTP API.
        """
        self._client = client
        parts = urlsplit(http_url)
        self._host, self._port = parts.hostname or "", parts.port or 80

    def answer(self, visit: Visit) -> AsyncGenerator[int, None]:
        """Asks, and yields how many tokens came each time; closing it is leaving.

        Raises:
            ArboristError: The server refused or could not go on.
        """
        return self._grpc(visit) if visit.door == "grpc" else self._http(visit)

    async def _grpc(self, visit: Visit) -> AsyncGenerator[int, None]:
        call = self._client.generate(
            visit.prompt,
            max_tokens=visit.max_tokens,
            temperature=0.0 if visit.seed is None else 0.8,
            seed=visit.seed,
            ignore_eos=True,
            timeout_s=_TIMEOUT_S,
        )
        async with call:
            async for one in call:
                yield len(one.token_ids)

    async def _http(self, visit: Visit) -> AsyncGenerator[int, None]:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(self._request(visit))
            await writer.drain()
            status = await reader.readline()
            if b" 200 " not in status:
                raise UnavailableError(f"HTTP: {status.decode(errors='replace').strip()}")
            async for line in reader:
                if line.startswith(b"data: {"):
                    event = json.loads(line.removeprefix(b"data: "))
                    if "error" in event:
                        raise UnavailableError(f"HTTP: {event['error']['message']}")
                    (choice,) = event["choices"]
                    yield len(choice.get("token_ids") or ())
                elif line.startswith(b'{"'):
                    yield visit.max_tokens
        finally:
            writer.transport.abort()

    def _request(self, visit: Visit) -> bytes:
        body: dict[str, Any] = {
            "prompt": visit.prompt,
            "max_tokens": visit.max_tokens,
            "temperature": 0.0 if visit.seed is None else 0.8,
            "seed": visit.seed,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": visit.door != "http_whole",
            "n": 2 if visit.door == "http_choices" else 1,
        }
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n"
        return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


@dataclass(slots=True)
class Outcomes:
    """What became of the clients.

    Attributes:
        by_door: How each asked.
        before_first_token: Clients that left before anything came.
        after_first_token: Clients that left while tokens came.
        completed: Clients that left too late.
        failed: Reason of the error table → clients.
    """

    by_door: Counter[str] = field(default_factory=Counter)
    before_first_token: int = 0
    after_first_token: int = 0
    completed: int = 0
    failed: Counter[str] = field(default_factory=Counter)


class Crowd:
    """Sends clients, so many at a time."""

    def __init__(self, server: Server, pace: Pace) -> None:
        """Joins them.

        Args:
            server: Whom they ask.
            pace: What tells them when to leave.
        """
        self._server = server
        self._pace = pace
        self.outcomes = Outcomes()

    async def send(self, clients: Iterator[Visit], concurrency: int) -> None:
        """Sends all of them."""

        async def one_by_one() -> None:
            for visit in clients:
                await self._send(visit)

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(one_by_one())

    async def _send(self, visit: Visit) -> None:
        outcomes = self.outcomes
        outcomes.by_door[visit.door] += 1
        num_tokens = 0
        begin_s = time.perf_counter()
        first_s = begin_s
        try:
            async with (
                asyncio.timeout(self._patience_s(visit)),
                aclosing(self._server.answer(visit)) as answer,
            ):
                async for count in answer:
                    if count and not num_tokens and visit.door != "http_whole":
                        first_s = time.perf_counter()
                        self._pace.first_token(first_s - begin_s)
                    num_tokens += count
                    if visit.early or num_tokens > visit.share * visit.max_tokens:
                        break
        except TimeoutError:
            pass
        except (ArboristError, OSError) as error:
            outcomes.failed[getattr(error, "reason", type(error).__name__)] += 1
            return
        if num_tokens >= visit.max_tokens:
            outcomes.completed += 1
        elif num_tokens:
            self._pace.tokens(num_tokens - 1, time.perf_counter() - first_s)
            outcomes.after_first_token += 1
        else:
            # Of an answer in one piece nothing is seen before its end.
            late = visit.door == "http_whole" and not visit.early
            outcomes.after_first_token += late
            outcomes.before_first_token += not late

    def _patience_s(self, visit: Visit) -> float | None:
        """Returns when it leaves at the latest; None = tokens tell."""
        if visit.early:
            return visit.share * self._pace.first_token_s
        if visit.door == "http_whole":
            tokens_s = visit.share * visit.max_tokens * self._pace.token_s
            return self._pace.first_token_s + tokens_s
        return None


class Watch:
    """Looks at the server's processes."""

    def __init__(self, metrics: ProcessMetrics, idle_s: float) -> None:
        """Wraps their metrics.

        Args:
            metrics: Of the processes.
            idle_s: How long the server is left alone before a look that counts, in seconds.
        """
        self._metrics = metrics
        self._idle_s = idle_s

    async def settled(self, like: Mapping[str, ProcessState] | None) -> dict[str, ProcessState]:
        """Waits until the server is idle and counts are as before; returns the last look.

        Args:
            like: The look to compare with; None = only that nothing runs.
        """
        await asyncio.sleep(self._idle_s)
        deadline_s = time.monotonic() + _SETTLE_S
        while True:
            states = await self._metrics.read()
            busy = any(
                one.num_sessions or one.kv_reserved_tokens or one.num_requests
                for one in states.values()
            )
            if not busy and (like is None or not left_behind(like, states)):
                return states
            if time.monotonic() > deadline_s:
                return states
            await asyncio.sleep(0.2)

    async def memory_mb(self) -> dict[str, float]:
        """Returns the resident memory of every process."""
        return {name: _mb(one.memory_bytes) for name, one in (await self._metrics.read()).items()}


def left_behind(
    before: Mapping[str, ProcessState], after: Mapping[str, ProcessState]
) -> dict[str, dict[str, list[float]]]:
    """Returns what is more than it was: process → count → [before, after]."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, state in after.items():
        for count in _COUNTS:
            pair = [getattr(one, count) for one in (before[name], state)]
            if None not in pair and pair[1] > pair[0]:
                found.setdefault(name, {})[count] = pair
    return found


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent.

    Attributes:
        num_requests: Clients that are measured.
        warm_up: Clients before.
        concurrency: Clients at a time.
        prompt_tokens: Shortest and longest prompt.
        max_tokens: Length of the answers.
        seed: Of everything.
        looks: Looks at memory on the way.
        idle_s: How long the server is left alone before it is compared, in seconds: it gives memory
            back once it has been idle for two.
    """

    num_requests: int = 10_000
    warm_up: int = 600
    concurrency: int = 32
    prompt_tokens: tuple[int, int] = (16, 384)
    max_tokens: int = 48
    seed: int = 0
    looks: int = 20
    idle_s: float = 10.0


async def measure(
    plan: Plan, server: OwnServer, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Sends everything and returns the report.

    Args:
        plan: What to send.
        server: To whom.
        progress: Takes a line after every look at memory.
    """
    watch = Watch(ProcessMetrics(server.metrics_urls), plan.idle_s)
    async with AsyncClient(server.address) as client:
        (model,) = await client.list_models()
        shape = (plan.prompt_tokens, plan.max_tokens, model.vocab_size)
        doors, pace = Server(client, server.http_url), Pace()
        warm_up = islice(visits(plan.seed, 0, *shape), plan.warm_up)
        await Crowd(doors, pace).send(warm_up, plan.concurrency)
        before = await watch.settled(None)
        crowd, clients = Crowd(doors, pace), visits(plan.seed, 1, *shape)
        begin_s = time.perf_counter()
        memory = []
        for part in _parts(plan.num_requests, plan.looks):
            await crowd.send(islice(clients, part), plan.concurrency)
            memory.append(await watch.memory_mb())
            sent = sum(crowd.outcomes.by_door.values())
            progress(f"{sent} sent, {time.perf_counter() - begin_s:.0f} s, MB: {memory[-1]}")
        took_s = time.perf_counter() - begin_s
        after = await watch.settled(before)
    outcomes = crowd.outcomes
    return {
        "machine": machine_facts(),
        "plan": {name: getattr(plan, name) for name in Plan.__slots__},
        "took_s": round(took_s, 1),
        "by_door": dict(outcomes.by_door),
        "left_before_first_token": outcomes.before_first_token,
        "left_after_first_token": outcomes.after_first_token,
        "completed": outcomes.completed,
        "failed": dict(outcomes.failed),
        "processes": {name: _process(before[name], one) for name, one in after.items()},
        "left_behind": left_behind(before, after),
        "memory_mb_on_the_way": memory,
    }


def _process(before: ProcessState, after: ProcessState) -> dict[str, Any]:
    counts = {
        name: [getattr(before, name), getattr(after, name)]
        for name in _COUNTS
        if getattr(after, name) is not None
    }
    memory = [_mb(before.memory_bytes), _mb(after.memory_bytes)]
    return {**counts, "memory_mb": memory, "growth_mb": round(memory[1] - memory[0], 2)}


def _mb(count: float | None) -> float:
    return round((count or 0.0) / 1e6, 2)


def _parts(count: int, looks: int) -> list[int]:
    return [count * (at + 1) // looks - count * at // looks for at in range(looks)]


def print_report(report: Mapping[str, Any]) -> None:
    """Prints a report as a Markdown table."""
    sent = sum(report["by_door"].values())
    print(
        f"{sent} requests in {report['took_s']} s: {report['left_before_first_token']} left before "
        f"the first token, {report['left_after_first_token']} after it, {report['completed']} too "
        f"late, failed: {report['failed'] or 'none'}"
    )
    print(f"by door: {report['by_door']}")
    names = (*_COUNTS, "memory_mb")
    print("| process |", " | ".join(names), "| growth_mb |")
    print("|---|", "---|" * (len(names) + 1), sep="")
    for process, figures in report["processes"].items():
        cells = ("→".join(f"{one:g}" for one in figures.get(name, ())) for name in names)
        print(f"| {process} |", " | ".join(cells), f"| {figures['growth_mb']:+.2f} |")
    print(f"left behind: {report['left_behind'] or 'nothing'}")


def _span(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high)):
        raise typer.BadParameter(f"{text}: MIN:MAX with 1 <= MIN <= MAX")
    return int(low), int(high)


def main(
    num_requests: Annotated[int, typer.Option(min=1, help="Clients that are measured.")] = 10_000,
    warm_up: Annotated[int, typer.Option(min=0, help="Clients before.")] = 600,
    concurrency: Annotated[int, typer.Option(min=1, help="Clients at a time.")] = 32,
    prompt_tokens: Annotated[str, typer.Option(help="MIN:MAX random ids.")] = "16:384",
    max_tokens: Annotated[int, typer.Option(min=1, help="Length of the answers.")] = 48,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    address: Annotated[str | None, typer.Option(help="gRPC API of a running server.")] = None,
    http_url: Annotated[str, typer.Option(help="Its HTTP API.")] = "http://127.0.0.1:8000",
    metrics: Annotated[
        str, typer.Option(help="Its processes: name=host:port with commas.")
    ] = "controller=127.0.0.1:9464,draft=127.0.0.1:9465,target=127.0.0.1:9466",
    target: Annotated[str | None, typer.Option(help="Of an own server; unset = embedded.")] = None,
    draft: Annotated[str | None, typer.Option(help="Of an own server; unset = embedded.")] = None,
    tracing: Annotated[bool, typer.Option(help="Trace every round of an own server.")] = True,
    max_growth_mb: Annotated[float, typer.Option(help="Most memory of a process.")] = 5.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report.")] = None,
) -> None:
    """Cancel requests at random points over both doors and report what is left of them."""
    plan = Plan(num_requests, warm_up, concurrency, _span(prompt_tokens), max_tokens, seed)
    own = OwnServerSettings(
        target=target,
        draft=draft,
        num_threads=1,
        max_sessions=max(64, 2 * concurrency),
        tracing=tracing,
    )

    async def run() -> dict[str, Any]:
        async with _server(own, address, http_url, metrics) as server:
            return await measure(plan, server, lambda line: typer.echo(line, err=True))

    report = asyncio.run(run())
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print_report(report)
    refused = sum(report["failed"].values()) > _MOST_FAILED_SHARE * num_requests
    if refused or report["left_behind"] or max(_growths(report)) > max_growth_mb:
        raise typer.Exit(1)


def _growths(report: Mapping[str, Any]) -> Sequence[float]:
    return [one["growth_mb"] for one in report["processes"].values()]


@asynccontextmanager
async def _server(
    own: OwnServerSettings, address: str | None, http_url: str, metrics: str
) -> AsyncIterator[OwnServer]:
    if address is not None:
        yield OwnServer(address, http_url, read_urls(metrics))
        return
    async with own_server(own) as server:
        yield server


if __name__ == "__main__":
    typer.run(main)
