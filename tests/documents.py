"""What the documents tell people to type."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import typer
from typer.core import TyperGroup

from arborist.cli.main import build_cli

REPOSITORY = Path(__file__).resolve().parents[1]
# Stands where a document leaves options out.
ELLIPSIS = "…"


@dataclass(frozen=True)
class Document:
    """One Markdown file, by its path in the repository."""

    path: str

    @property
    def text(self) -> str:
        """All of it."""
        return (REPOSITORY / self.path).read_text(encoding="utf-8")

    def blocks(self, language: str) -> list[str]:
        """Returns its code blocks of a language."""
        return re.findall(rf"^```{language}\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)

    def commands(self) -> list[str]:
        """Returns the commands of its shell blocks, one line each, without comments."""
        lines = "\n".join(self.blocks("sh")).replace("\\\n", " ").splitlines()
        bare = [re.sub(r"(^|\s)#.*$", "", line) for line in lines]
        return [" ".join(line.split()) for line in bare if line.strip()]


def words(command: str) -> list[str]:
    """Returns a command's words, without the folder of its program."""
    program, *arguments = shlex.split(command)
    return [program.rpartition("/")[2], *arguments]


def parse(command: str) -> None:
    """Reads an `arborist` command as the command line would, and runs nothing.

    Raises:
        Exception: An option or the command does not exist, a value is of the wrong type, or
            something is missing and no ellipsis stands for it.
    """
    program, name, *arguments = words(command)
    assert program == "arborist"
    group = typer.main.get_command(build_cli())
    assert isinstance(group, TyperGroup)
    assert name in group.commands, f"no such command: {name}"
    subcommand = group.commands[name]
    before = ["", *arguments]
    # Behind the name of an option it stands for a value, elsewhere for more options.
    given = [
        one
        for one, last in zip(arguments, before, strict=False)
        if one != ELLIPSIS or last.startswith("--")
    ]
    try:
        subcommand.make_context(name, given)
    except Exception as error:  # typer carries its own click: told by its name
        if len(given) == len(arguments) or type(error).__name__ != "MissingParameter":
            raise
