"""`docs/openai.md` and the code name the same fields."""

import re

from tests.documents import Document

from arborist.orchestrator.api.openai.chat_request import ChatRequest
from arborist.orchestrator.api.openai.completion_request import CompletionRequest
from arborist.orchestrator.api.openai.field_list import IGNORED_FIELDS, REFUSED_FIELDS

TEXT = Document("docs/openai.md").text


def names(part: str) -> set[str]:
    """Field names that stand by themselves between backticks."""
    return set(re.findall(r"`([a-z_]+)`", part))


def test_every_honoured_field_has_its_row() -> None:
    """The first column of the table is what the request models take, and nothing else."""
    (table,) = re.findall(r"\| field \| meaning here \|\n\|---\|---\|\n((?:\|.*\n)+)", TEXT)
    rows = [one.split("|")[1] for one in table.splitlines()]

    assert names(" ".join(rows)) == {*ChatRequest.model_fields, *CompletionRequest.model_fields}


def test_the_published_lists_are_the_code() -> None:
    """What is ignored and what is refused, each by name."""
    (ignored,) = re.findall(r"\nIgnored, .*?:(.*?); in a", TEXT, re.DOTALL)
    (refused,) = re.findall(r"…\):(.*?)\. Every other", TEXT, re.DOTALL)

    assert names(ignored) == set(IGNORED_FIELDS)
    assert names(refused) == set(REFUSED_FIELDS)
