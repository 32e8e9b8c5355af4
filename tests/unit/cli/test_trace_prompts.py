"""Files of prompts to trace, and what in them is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from arborist.cli.trace.prompts import read_prompts
from arborist.core.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a file with at least one prompt"),
        ("\n \n", "must be a file with at least one prompt"),
        ('{"prompt_ids": [1]}\nnot json', "prompts.jsonl:2 = not JSON"),
        ("1" * 5000, "prompts.jsonl:1 = not JSON"),
        ("[1, 2]", "prompts.jsonl:1 = no prompt_ids"),
        ('{"id": 1, "prompt": "text"}', "prompts.jsonl:1 = no prompt_ids"),
        ('{"prompt_ids": []}', "prompts.jsonl:1 prompt_ids = no list"),
        ('{"prompt_ids": "1,2"}', "prompts.jsonl:1 prompt_ids = no list"),
        ('{"prompt_ids": [1, true]}', r"prompt_ids\[1\] = bool: must be an integer"),
        ('{"prompt_ids": [1.5]}', r"prompt_ids\[0\] = float: must be an integer"),
        ('{"id": [1], "prompt_ids": [1]}', "prompts.jsonl:1 id = list: must be a string or an"),
        ('{"id": 1, "prompt_ids": [1]}\n{"prompt_ids": [1]}', "prompts.jsonl:2 = id 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    """File, line number, what is there and what must be."""
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match=message):
        read_prompts(path)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    """A file of other bytes, and a folder."""
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgumentError, match="must be UTF-8 text"):
        read_prompts(path)
    with pytest.raises(InvalidArgumentError, match="must be a file that can be read"):
        read_prompts(tmp_path)
