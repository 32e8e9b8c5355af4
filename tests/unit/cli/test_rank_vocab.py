"""`arborist rank-vocab`: counting, order, and the file it writes."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from arborist.cli.main import main
from arborist.cli.rank_vocab import count_tokens, ids_for, rank_tokens
from arborist.common.vocabulary_file import read_vocabulary_file
from arborist.core.errors import InvalidArgumentError


class Letters:
    """Every character is a token."""

    def encode(self, text: str) -> list[int]:
        """Returns code points of what is no white space."""
        return [ord(one) for one in text if not one.isspace()]


def test_text_and_json_lines_are_counted(tmp_path: Path) -> None:
    """Plain lines, texts, responses and ready ids; the prompt of a response does not count."""
    plain, rows = tmp_path / "a.txt", tmp_path / "b.jsonl.gz"
    plain.write_text("ab\n\na\n")
    lines = [{"text": "c"}, {"prompt": "zz", "response": "a"}, {"output_ids": [97, 5]}]
    with gzip.open(rows, "wt") as file:
        file.write("\n".join(json.dumps(line) for line in lines))
    assert count_tokens([plain, rows], Letters()) == {97: 4, 98: 1, 99: 1, 5: 1}


def test_ids_come_by_frequency_and_ends_of_sequence_first() -> None:
    """Ties go to the smaller id; an end of sequence that never occurs is kept."""
    counts = Counter({4: 2, 9: 5, 3: 2, 7: 1})
    assert rank_tokens(counts, (0, 7)) == [0, 7, 9, 3, 4]
    assert [ids_for(counts, share) for share in (0.5, 0.7, 0.9, 1.0)] == [1, 2, 3, 4]


@pytest.mark.parametrize("content", ["not json", "[1]", '{"turns": []}', '{"output_ids": [-1]}'])
def test_other_lines_are_refused(tmp_path: Path, content: str) -> None:
    """The message names file and line."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n' + content)
    with pytest.raises(InvalidArgumentError, match=r"rows\.jsonl:2"):
        count_tokens([file], Letters())


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    """There must be something to count."""
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(InvalidArgumentError, match="at least one token"):
        count_tokens([empty], Letters())
    with pytest.raises(InvalidArgumentError, match=r"none\.txt"):
        count_tokens([tmp_path / "none.txt"], Letters())


def test_the_command_writes_what_a_draft_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the embedded pair's tokenizer, cut to a size; it says how much that covers."""
    text, out = tmp_path / "text.txt", tmp_path / "ids.json"
    text.write_text("A mutex is a lock. " * 5)
    with pytest.raises(SystemExit) as ended:
        main(["rank-vocab", str(text), "--out", str(out), "--size", "4"])
    assert ended.value.code == 0
    assert len(read_vocabulary_file(out)) == 4
    printed = capsys.readouterr().out
    assert "kept=4" in printed
    assert "ids for 99.0%" in printed
