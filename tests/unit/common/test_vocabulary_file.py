"""Lists of frequent ids from files: taken from the front, or refused with the fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from arborist.common.config import DraftWorkerConfig
from arborist.common.vocabulary_file import read_vocabulary_file
from arborist.core.errors import InvalidArgumentError


def test_the_first_ids_are_the_frequent_ones(tmp_path: Path) -> None:
    """A size takes so many from the front; the configuration reads the same."""
    file = tmp_path / "ids.json"
    file.write_text("[7, 3, 9]")
    assert read_vocabulary_file(file) == [7, 3, 9]
    assert read_vocabulary_file(file, 2) == [7, 3]
    assert DraftWorkerConfig(vocabulary_file=file, vocabulary_size=1).token_ids() == [7]
    assert DraftWorkerConfig().token_ids() is None


@pytest.mark.parametrize(
    ("content", "size", "message"),
    [
        (None, None, "must be a file that can be read"),
        ("", None, "must be a JSON list of token ids"),
        ("[]", None, "must be a JSON list of token ids"),
        ("[1, -1]", None, r"vocabulary_file\[1\] = -1"),
        ("[true]", None, r"vocabulary_file\[0\] = True"),
        ("[1, 1]", None, "without repeated ids"),
        ("[1, 2]", 3, "vocabulary_size = 3: must be at most 2"),
    ],
)
def test_what_is_no_list_of_ids_is_refused(
    tmp_path: Path, content: str | None, size: int | None, message: str
) -> None:
    """One line names field, fault and limit."""
    file = tmp_path / "ids.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidArgumentError, match=message):
        read_vocabulary_file(file, size)
