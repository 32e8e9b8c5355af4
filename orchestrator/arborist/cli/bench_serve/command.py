"""The `arborist bench-serve` command line."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from arborist.cli.api_key_option import ApiKeyOption
from arborist.cli.dtype_names import DTYPE_NAMES
from arborist.core.errors import InvalidArgumentError
from arborist.core.policy_settings import POLICY_NAMES

if TYPE_CHECKING:
    from arborist.cli.bench_serve.figures import ServiceLevel
    from arborist.cli.bench_serve.http_sender import HttpSender
    from arborist.cli.bench_serve.load_point import LoadPoint
    from arborist.cli.bench_serve.load_settings import LoadSettings
    from arborist.cli.bench_serve.own_server import OwnServerSettings
    from arborist.cli.bench_serve.sender import GrpcSender
    from arborist.client.prompt import Prompt, Speculation

LATENCIES = (
    "Latencies are the client's, of completed requests. TTFT: from when the request was due to its "
    "first token. Inter-token: a round brings several tokens in one message; the gap before a "
    "message is spread evenly over its tokens, and each token counts once. JSON has the gaps "
    "between messages besides (message_gap_ms). Goodput: requests within --slo-ttft-ms whose mean "
    "inter-token time is within --slo-itl-ms. Loaded tok/s: until there was nothing left to send."
)
Protocol: TypeAlias = Literal["grpc", "http"]
_LOAD, _ASKED, _OWN = "Load", "What is asked", "A server of its own (--start)"


@dataclass(frozen=True, slots=True)
class _Job:
    """Everything the command was told."""

    address: str | None
    protocol: Protocol
    api_key: str | None
    model: str
    start: OwnServerSettings | None
    metrics: dict[str, str]
    points: list[LoadPoint]
    repetitions: int
    settings: LoadSettings
    shape: Speculation
    level: ServiceLevel
    prompts_file: Path | None
    prompt_form: Literal["chat", "text"]
    num_prompts: int | None
    synthetic: str | None


def bench_serve(
    address: Annotated[
        str | None,
        typer.Option(help="Server (127.0.0.1:9000; of HTTP 127.0.0.1:8000, or a URL)."),
    ] = None,
    protocol: Annotated[
        Protocol, typer.Option(help="gRPC, or HTTP as OpenAI's clients speak it.")
    ] = "grpc",
    api_key: ApiKeyOption = None,
    model: Annotated[str, typer.Option(help="Served name; unset = the only one.")] = "",
    prompts: Annotated[
        Path | None, typer.Option(help="JSON lines with `turns`; the first turn is asked.")
    ] = None,
    prompt_form: Annotated[
        Literal["chat", "text"], typer.Option(help="Through the chat template, or as it stands.")
    ] = "chat",
    num_prompts: Annotated[
        int | None, typer.Option(min=1, help="Take this many questions, spread evenly.")
    ] = None,
    synthetic_prompt_tokens: Annotated[
        str | None, typer.Option(help="MIN:MAX random ids in place of a file.")
    ] = None,
    concurrency: Annotated[
        str, typer.Option(help="Closed loop: clients; several with commas.", rich_help_panel=_LOAD)
    ] = "1",
    rate: Annotated[
        str | None,
        typer.Option(
            help="Open loop: Poisson arrivals per second; several with commas.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    num_requests: Annotated[
        int | None, typer.Option(min=1, help="Requests of a run (64).", rich_help_panel=_LOAD)
    ] = None,
    duration_s: Annotated[
        float | None,
        typer.Option(
            "--duration", min=0.1, help="Seconds of a run instead.", rich_help_panel=_LOAD
        ),
    ] = None,
    warm_up: Annotated[
        int, typer.Option(min=0, help="Requests per point before.", rich_help_panel=_LOAD)
    ] = 4,
    repetitions: Annotated[
        int, typer.Option(min=1, max=1000, help="Runs of a point, interleaved; medians are shown.")
    ] = 1,
    cancel_share: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of clients that leave early, half of them before the first token.",
            rich_help_panel=_LOAD,
        ),
    ] = 0.0,
    max_in_flight: Annotated[
        int, typer.Option(min=1, help="Bound of an open loop.", rich_help_panel=_LOAD)
    ] = 4096,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Deadline of a request, in seconds.")
    ] = 300.0,
    speculation: Annotated[
        str,
        typer.Option(
            help="on, off, adaptive, default (the server's) or a policy "
            f"({', '.join(POLICY_NAMES)}); several with commas.",
            rich_help_panel=_ASKED,
        ),
    ] = "default",
    policy: Annotated[
        str | None, typer.Option(help="Policy of on and default.", rich_help_panel=_ASKED)
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Levels below the root.", rich_help_panel=_ASKED)
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Frontier width, children per node.", rich_help_panel=_ASKED)
    ] = None,
    num_draft_tokens: Annotated[
        int | None, typer.Option(help="Drafted nodes per round.", rich_help_panel=_ASKED)
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens per output.", rich_help_panel=_ASKED)
    ] = 128,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Always max_tokens.", rich_help_panel=_ASKED)
    ] = False,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="0 = greedy.", rich_help_panel=_ASKED)
    ] = 0.0,
    seed: Annotated[
        int, typer.Option(min=0, help="Of order, arrivals, cancellations, sampling.")
    ] = 0,
    slo_ttft_ms: Annotated[
        float | None, typer.Option(min=0.0, help="Longest time to the first token.")
    ] = None,
    slo_itl_ms: Annotated[
        float | None, typer.Option(min=0.0, help="Largest mean time per token after it.")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="Processes to ask for CPU, memory, KV: name=host:port with commas."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
    start: Annotated[
        bool,
        typer.Option(
            "--start", help="Start draft, target and controller here, no Ray.", rich_help_panel=_OWN
        ),
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of all three.", rich_help_panel=_OWN)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Target; unset = embedded.", rich_help_panel=_OWN)
    ] = None,
    draft: Annotated[
        str | None, typer.Option(help="Head; unset = embedded.", rich_help_panel=_OWN)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16.", rich_help_panel=_OWN)
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda:N.", rich_help_panel=_OWN)] = None,
    num_threads: Annotated[
        int | None, typer.Option(help="Of each worker; 0 = every core.", rich_help_panel=_OWN)
    ] = None,
    kv_capacity_tokens: Annotated[
        int | None, typer.Option(help="KV of each worker, in tokens.", rich_help_panel=_OWN)
    ] = None,
    max_sessions: Annotated[
        int | None,
        typer.Option(help="Decoded at a time; unset = as many clients.", rich_help_panel=_OWN),
    ] = None,
    tracing: Annotated[
        bool, typer.Option(help="Trace every round, as in production.", rich_help_panel=_OWN)
    ] = True,
    trace_detail: Annotated[
        str | None, typer.Option(help="level or round.", rich_help_panel=_OWN)
    ] = None,
) -> None:
    """Load a server and report what its clients see: latencies, throughput, goodput, tau."""
    from arborist.cli.bench_serve.figures import ServiceLevel
    from arborist.cli.bench_serve.load_point import load_points
    from arborist.cli.bench_serve.load_settings import LoadSettings
    from arborist.cli.bench_serve.own_server import OwnServerSettings
    from arborist.cli.bench_serve.process_metrics import read_urls
    from arborist.client.prompt import Speculation

    if (prompts is None) == (synthetic_prompt_tokens is None):
        raise typer.BadParameter("give one of --prompts and --synthetic-prompt-tokens")
    if num_requests is not None and duration_s is not None:
        raise typer.BadParameter("give one of --num-requests and --duration")
    if num_requests is None and duration_s is None:
        num_requests = 64
    points = load_points(speculation, concurrency, rate)
    own = OwnServerSettings(
        config=config,
        target=target,
        draft=draft,
        dtype=_dtype(dtype),
        device=device,
        num_threads=num_threads,
        kv_capacity_tokens=kv_capacity_tokens,
        max_sessions=max_sessions or max(64, *(point.concurrency or 0 for point in points)),
        tracing=tracing,
        trace_detail=trace_detail,
    )
    if start and (address is not None or metrics is not None):
        raise typer.BadParameter("--address and --metrics have no effect with --start")
    if not start:
        _refuse_own(own, max_sessions)
    job = _Job(
        address=address,
        protocol=protocol,
        api_key=api_key,
        model=model,
        start=own if start else None,
        metrics=read_urls(metrics) if metrics is not None else {},
        points=points,
        repetitions=repetitions,
        settings=LoadSettings(
            num_requests=num_requests,
            duration_s=duration_s,
            warm_up=warm_up,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            ignore_eos=ignore_eos,
            timeout_s=timeout_s,
            cancel_share=cancel_share,
            max_in_flight=max_in_flight,
        ),
        shape=Speculation(None, depth, top_k, num_draft_tokens, policy),
        level=ServiceLevel(slo_ttft_ms, slo_itl_ms),
        prompts_file=prompts,
        prompt_form=prompt_form,
        num_prompts=num_prompts,
        synthetic=synthetic_prompt_tokens,
    )
    _finish(job, json_file)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("bench-serve", epilog=LATENCIES)(bench_serve)


def _finish(job: _Job, json_file: Path | None) -> None:
    import uvloop

    from arborist.cli.bench_serve.report import print_report

    report = uvloop.run(_measure(job))
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print_report(report)


async def _measure(job: _Job) -> dict[str, Any]:
    from rich.progress import Progress

    from arborist.cli.bench_serve.campaign import Campaign
    from arborist.cli.bench_serve.own_server import own_server
    from arborist.cli.bench_serve.process_metrics import ProcessMetrics
    from arborist.cli.bench_serve.report import SCHEMA, point_objects, ratios
    from arborist.cli.machine import machine_facts

    async with AsyncExitStack() as stack:
        address, urls = job.address, job.metrics
        if job.start is not None:
            server = await stack.enter_async_context(own_server(job.start))
            address = server.http_url if job.protocol == "http" else server.address
            urls = dict(server.metrics_urls)
        sender = await stack.enter_async_context(_sender(job, address))
        prompts = await _prompts(job, sender)
        campaign = Campaign(
            sender,
            job.settings,
            prompts,
            job.shape,
            job.level,
            ProcessMetrics(urls) if urls else None,
        )
        progress = stack.enter_context(Progress(transient=True))
        bar = progress.add_task("bench-serve", total=len(job.points) * job.repetitions)
        found = await campaign.measure(job.points, job.repetitions, lambda _: progress.advance(bar))
    return {
        "schema": SCHEMA,
        "machine": machine_facts(),
        "settings": _settings(job, len(prompts)),
        "points": point_objects(found.runs),
        "ratios": ratios(found.runs),
        "kept": found.kept,
    }


@asynccontextmanager
async def _sender(job: _Job, address: str | None) -> AsyncIterator[GrpcSender | HttpSender]:
    if job.protocol == "http":
        from arborist.cli.bench_serve.http_sender import DEFAULT_HTTP_ADDRESS, HttpSender

        url = address or DEFAULT_HTTP_ADDRESS
        async with HttpSender.connected(url, job.api_key, job.model) as sender:
            yield sender
        return
    from arborist.cli.bench_serve.sender import GrpcSender
    from arborist.client.async_client import AsyncClient
    from arborist.client.call import DEFAULT_ADDRESS

    async with AsyncClient(address or DEFAULT_ADDRESS, api_key=job.api_key) as client:
        yield GrpcSender(client, job.model)


async def _prompts(job: _Job, sender: GrpcSender | HttpSender) -> list[Prompt]:
    from arborist.cli.bench_serve.load_prompts import file_prompts, synthetic_prompts

    if job.prompts_file is not None:
        return file_prompts(job.prompts_file, job.prompt_form, job.num_prompts)
    models = [one for one in await sender.list_models() if job.model in ("", one.id)]
    if len(models) != 1:
        names = ", ".join(one.id for one in models) or "none"
        raise InvalidArgumentError("--model", job.model or "unset", f"one served name of {names}")
    settings = job.settings
    return synthetic_prompts(job.synthetic or "", models[0], settings.max_tokens, settings.seed)


def _settings(job: _Job, num_prompts: int) -> dict[str, Any]:
    own: dict[str, Any] | None = None
    if job.start is not None:
        own = asdict(job.start)
        for name in ("config", "target", "draft"):  # Paths are nobody's business.
            own[name] = Path(own[name]).name if own[name] is not None else None
    return {
        **asdict(job.settings),
        "protocol": job.protocol,
        "model": job.model,
        "repetitions": job.repetitions,
        "prompts": job.prompts_file.name if job.prompts_file is not None else None,
        "prompt_form": job.prompt_form,
        "num_prompts": num_prompts,
        "synthetic_prompt_tokens": job.synthetic,
        "shape": asdict(job.shape),
        "service_level": asdict(job.level),
        "own_server": own,
    }


def _dtype(name: str | None) -> str | None:
    if name is None or name in DTYPE_NAMES.values():
        return name
    if name not in DTYPE_NAMES:
        raise InvalidArgumentError("--dtype", name, f"of {', '.join(DTYPE_NAMES)}")
    return DTYPE_NAMES[name]


def _refuse_own(own: OwnServerSettings, max_sessions: int | None) -> None:
    """Refuses flags that would have no effect on a server that runs already."""
    given = {**asdict(own), "max_sessions": max_sessions}
    for name, value in given.items():
        if value is not None and name != "tracing":
            flag = name.replace("_", "-")
            raise typer.BadParameter(
                f"--{flag} has no effect on a running server: it needs --start"
            )
