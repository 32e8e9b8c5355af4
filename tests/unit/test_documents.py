"""Commands that other documents show exist as they are written."""

import re
import tomllib

import pytest
from tests.documents import REPOSITORY, Document, parse, words

GUIDES = [Document(f"docs/{one.name}") for one in sorted((REPOSITORY / "docs").glob("*.md"))]
DOCUMENTS = [Document("README.md"), Document("CONTRIBUTING.md"), *GUIDES]
COMMANDS = [command for guide in GUIDES for command in guide.commands()]


@pytest.mark.parametrize("command", [one for one in COMMANDS if words(one)[0] == "arborist"])
def test_commands_of_the_guides_are_valid(command: str) -> None:
    """Every option of every `arborist` command in the guides exists and takes such a value."""
    parse(command)


@pytest.mark.parametrize(
    "command",
    ["arborist train-traget D", "arborist train-head T --uot o", "arborist demo --depth x"],
)
def test_wrong_commands_are_seen(command: str) -> None:
    """The check above refuses a misspelt command, a misspelt option and a wrong value."""
    with pytest.raises(Exception, match=r"train-traget|--uot|valid integer"):
        parse(f"{command} …")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda one: one.path)
def test_make_targets_exist(document: Document) -> None:
    """`make` knows every target that a document names."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    known = {name for line in re.findall(r"^([a-z ]+):", makefile, re.M) for name in line.split()}

    assert set(re.findall(r"`make ([a-z]+)", document.text)) <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda one: one.path)
def test_links_lead_somewhere(document: Document) -> None:
    """Every file that a document links to is there."""
    folder = (REPOSITORY / document.path).parent
    links = re.findall(r"\]\(([^)#:]+)\)", document.text)

    assert [one for one in links if not (folder / one).exists()] == []


def test_tools_of_contributing_are_installed() -> None:
    """What CONTRIBUTING calls from `.venv/bin` comes with `pip install -e .[dev]`."""
    text = Document("CONTRIBUTING.md").text
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dev = {one.partition("==")[0] for one in project["optional-dependencies"]["dev"]}

    assert set(re.findall(r"`\.venv/bin/([\w-]+)", text)) <= dev
    assert all((REPOSITORY / one).exists() for one in re.findall(r"`bash (\S+?)`", text))
