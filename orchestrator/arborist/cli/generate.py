"""`arborist generate`: one completion, from a running server or in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arborist.cli.api_key_option import ApiKeyOption
from arborist.cli.model_settings import model_settings
from arborist.cli.servable_draft import with_servable_draft
from arborist.client.call import DEFAULT_ADDRESS
from arborist.client.client import Client
from arborist.client.completion import Completion, RoundEvent
from arborist.client.generation_wire import write_request
from arborist.client.prompt import Message, Prompt, Speculation
from arborist.common.threads_config import apply_thread_environment
from arborist.core.policy_settings import POLICY_NAMES

if TYPE_CHECKING:
    from arborist.cli.local import LocalModel

KNOBS = (
    "Names elsewhere: SGLang's --speculative-num-draft-tokens is our --num-draft-tokens + 1, its "
    "--speculative-num-steps our --depth, its --speculative-eagle-topk our --top-k; the official "
    "code's total_token is our --num-draft-tokens + 1, its depth our --depth - 1."
)
_SAMPLING = "Sampling"
_TREE = "Speculation (never changes the output)"
_LOCAL = "In this process (--local)"


@dataclass(frozen=True, slots=True)
class Question:
    """What to generate, whoever does it."""

    prompt: Prompt
    options: dict[str, Any]


def generate(
    prompt: Annotated[str | None, typer.Option(help="Text to continue.")] = None,
    prompt_ids: Annotated[str | None, typer.Option(help="Token ids to continue: 1,2,3.")] = None,
    chat: Annotated[
        str | None, typer.Option(help="Message to answer, in the model's chat template.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens to generate; unset = the server's default.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this string; may be given again.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Do not end at end-of-sequence tokens.")
    ] = False,
    json_schema: Annotated[
        Path | None, typer.Option(help="File with a JSON schema that the output must fit.")
    ] = None,
    json_object: Annotated[
        bool, typer.Option("--json-object", help="The output must be a JSON object.")
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(help="0 = greedy (default), to 100.", rich_help_panel=_SAMPLING)
    ] = None,
    top_k_sampling: Annotated[
        int | None,
        typer.Option(help="Keep the most probable tokens; 0 = all.", rich_help_panel=_SAMPLING),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Nucleus mass in (0, 1].", rich_help_panel=_SAMPLING)
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            help="Least probability relative to the best token's, in [0, 1].",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="64 bits; unset = drawn and reported.", rich_help_panel=_SAMPLING),
    ] = None,
    speculation: Annotated[
        Literal["on", "off"] | None,
        typer.Option(help="Draft or not; unset = the server's default.", rich_help_panel=_TREE),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Levels below the root, in [1, 16].", rich_help_panel=_TREE)
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Frontier width, children per node, in [1, 32].", rich_help_panel=_TREE),
    ] = None,
    num_draft_tokens: Annotated[
        int | None,
        typer.Option(help="Drafted nodes verified per round, in [1, 256].", rich_help_panel=_TREE),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help=f"One of {', '.join(POLICY_NAMES)}.", rich_help_panel=_TREE),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    address: Annotated[
        str | None, typer.Option(help=f"Server's gRPC address ({DEFAULT_ADDRESS}).")
    ] = None,
    model: Annotated[str, typer.Option(help="Served name; unset = the only one.")] = "",
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", min=0.001, help="Seconds to wait for the server.")
    ] = None,
    api_key: ApiKeyOption = None,
    local: Annotated[
        bool,
        typer.Option("--local", help="Load the models here, no server.", rich_help_panel=_LOCAL),
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(
            help="Target: folder or hub name; unset = the embedded pair.", rich_help_panel=_LOCAL
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            help="EAGLE head of any format, or a language model: folder or hub name; "
            "unset = the embedded pair.",
            rich_help_panel=_LOCAL,
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu (default), or cuda:N.", rich_help_panel=_LOCAL)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="fp32 (default), bf16 or fp16.", rich_help_panel=_LOCAL)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file; flags and environment win over it.", rich_help_panel=_LOCAL),
    ] = None,
) -> None:
    """Generate one completion: text as it comes, or one JSON object."""
    drafting = Speculation(
        None if speculation is None else speculation == "on",
        depth,
        top_k,
        num_draft_tokens,
        policy,
    )
    question = Question(
        _one_prompt(prompt, prompt_ids, chat),
        {
            "model": model,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_k": top_k_sampling,
            "top_p": top_p,
            "min_p": min_p,
            "seed": seed,
            "stop": tuple(stop or ()),
            "speculation": drafting,
            "ignore_eos": ignore_eos,
            "json_schema": None if json_schema is None else _read_schema(json_schema),
            "json_object": json_object,
        },
    )
    if local:
        _refuse("--local", {"--address": address, "--timeout": timeout_s})
        loaded = _load(target, draft, device, dtype, config, drafting)
        completion = _ask_local(loaded, question, streams=not as_json)
    else:
        only_local = {"--target": target, "--draft": draft, "--device": device, "--dtype": dtype}
        _refuse("a server", {**only_local, "--config": config})
        client = Client(address or DEFAULT_ADDRESS, api_key=api_key)
        completion = _ask_server(client, question, timeout_s, not as_json)
    if as_json:
        typer.echo(json.dumps(completion_object(completion), ensure_ascii=False))
    else:
        _print_end(completion)


def completion_object(completion: Completion) -> dict[str, Any]:
    """Returns what `--json` prints.

    Args:
        completion: A whole output.
    """
    summary = completion.summary
    speculation, timing = summary.speculation, summary.timing
    return {
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "finish_reason": summary.finish_reason,
        "model": completion.started.model,
        "seed": completion.started.seed,
        "usage": {
            "prompt_tokens": summary.prompt_tokens,
            "completion_tokens": summary.completion_tokens,
        },
        "speculation": {
            "rounds": speculation.rounds,
            "draft_tokens": speculation.draft_tokens,
            "accepted_tokens": speculation.accepted_tokens,
            "tau": speculation.tau,
            "acceptance_histogram": list(speculation.acceptance_histogram),
            "rounds_without_draft": speculation.rounds_without_draft,
        },
        "timing": {
            "time_to_first_token_ms": timing.time_to_first_token_ms,
            "decode_ms": timing.decode_ms,
            "total_ms": timing.total_ms,
            "tokens_per_s": timing.tokens_per_s,
        },
    }


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("generate", epilog=KNOBS)(generate)


def _one_prompt(text: str | None, ids: str | None, chat: str | None) -> Prompt:
    given = [one for one in (text, ids, chat) if one is not None]
    if len(given) != 1:
        raise typer.BadParameter("give exactly one of --prompt, --prompt-ids, --chat")
    if text is not None:
        return text
    if chat is not None:
        return [Message("user", chat)]
    try:
        return [int(one) for one in (ids or "").split(",") if one.strip()]
    except ValueError:
        raise typer.BadParameter("--prompt-ids: must be integers with commas: 1,2,3") from None


def _read_schema(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise typer.BadParameter(f"--json-schema: cannot read {path}: {reason}") from None


def _refuse(mode: str, flags: dict[str, object]) -> None:
    """Refuses flags that would have no effect."""
    for name, value in flags.items():
        if value is not None:
            advice = "leave it out" if mode == "--local" else "it needs --local"
            raise typer.BadParameter(f"{name} has no effect with {mode}: {advice}")


def _load(
    target: str | None,
    draft: str | None,
    device: str | None,
    dtype: str | None,
    config: Path | None,
    drafting: Speculation,
) -> LocalModel:
    missing_draft = "--target needs its --draft, or --speculation off"
    settings = model_settings(
        target,
        draft,
        device,
        dtype,
        config,
        missing_draft=None if drafting.enabled is False else missing_draft,
    )
    # Before torch is imported, which the engines do.
    apply_thread_environment(settings.target.num_threads)
    from arborist.cli.local import LocalModel

    wanted = settings.speculation.enabled if drafting.enabled is None else drafting.enabled
    if wanted:
        settings = with_servable_draft(settings, say=partial(typer.echo, err=True))
    return LocalModel.load(settings, speculation=wanted)


def _ask_local(model: LocalModel, question: Question, *, streams: bool) -> Completion:
    from arborist.orchestrator.api.generation_wire import read_request

    # Through the contract's message, so that both ways refuse the same with the same words.
    request = read_request(write_request(question.prompt, **question.options), traceparent="")
    return model.complete(request, on_text=_print_round if streams else None)


def _ask_server(
    client: Client, question: Question, timeout_s: float | None, streams: bool
) -> Completion:
    with (
        client,
        client.generate(question.prompt, timeout_s=timeout_s, **question.options) as stream,
    ):
        for round_ in stream:
            if streams:
                _print_round(round_)
        return stream.completion()


def _print_round(round_: RoundEvent) -> None:
    typer.echo(round_.text, nl=False)


def _print_end(completion: Completion) -> None:
    summary = completion.summary
    speculation, timing = summary.speculation, summary.timing
    if completion.text:
        typer.echo()
    elif completion.token_ids:  # A model without tokenizer.
        typer.echo(",".join(str(one) for one in completion.token_ids))
    parts = [
        f"{summary.completion_tokens} tokens",
        f"finish_reason={summary.finish_reason}",
        f"tau={speculation.tau:.2f}",
        f"rounds={speculation.rounds}",
        f"tokens_per_s={timing.tokens_per_s:.1f}",
        f"seed={completion.started.seed}",
    ]
    typer.echo(" ".join(parts), err=True)
