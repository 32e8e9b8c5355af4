"""The `arborist chat` command line."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from arborist.cli.api_key_option import ApiKeyOption
from arborist.cli.chat.chat_loop import ChatLoop
from arborist.cli.chat.conversation import Conversation
from arborist.client.call import DEFAULT_ADDRESS
from arborist.client.client import Client, GenerationStream
from arborist.client.prompt import Message, Speculation

_PROMPT = "> "


def chat(
    address: Annotated[str, typer.Option(help="Server's gRPC address.")] = DEFAULT_ADDRESS,
    model: Annotated[str, typer.Option(help="Served name; unset = the only one.")] = "",
    system: Annotated[
        str | None, typer.Option(help="What the model is told before everything.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer; unset = the server's default.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 = greedy (default), to 100.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus mass in (0, 1].")] = None,
    seed: Annotated[
        int | None, typer.Option(help="64 bits; unset = drawn for every answer.")
    ] = None,
    speculation: Annotated[
        Literal["on", "off"] | None,
        typer.Option(help="Draft or not; unset = the server's default."),
    ] = None,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", min=0.001, help="Seconds an answer may take.")
    ] = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Talk to a served model: answers as they come, /stats, /reset, /quit; Ctrl-C cancels."""
    drafting = None if speculation is None else Speculation(enabled=speculation == "on")
    with Client(address, api_key=api_key) as client:

        def ask(messages: list[Message]) -> GenerationStream:
            return client.generate(
                messages,
                model=model,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                speculation=drafting,
                timeout_s=timeout_s,
            )

        loop = ChatLoop(
            ask,
            Conversation(system),
            read=_read_typed if sys.stdin.isatty() else _read_piped,
            write=_write,
            note=lambda line: typer.echo(line, err=True),
        )
        if not loop.run():
            raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("chat")(chat)


def _read_typed() -> str | None:
    import readline  # noqa: F401 - gives input() its line editing

    try:
        return input(_PROMPT)
    except EOFError:
        typer.echo(err=True)
        return None


def _read_piped() -> str | None:
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
