"""Static trees from files: read as they are, or refused with file, fault and limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from arborist.common.config import ConfigError, load_config
from arborist.common.tree_file import read_tree_file
from arborist.core.errors import InvalidArgumentError


def test_a_tree_is_read_in_any_order(tmp_path: Path) -> None:
    """Children may come before parents; levels come out in order."""
    file = tmp_path / "tree.json"
    file.write_text("[[0, 1], [1], [0], [0, 0]]")
    assert read_tree_file(file).paths == [(0,), (1,), (0, 0), (0, 1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"tree_file = .*tree\.json: must be a file that can be read"),
        ("", r"tree_file = .*tree\.json: must be a JSON list of lists of ranks"),
        ("{}", "must be a JSON list"),
        ("[]", "tree_file, static tree = 0 paths: must be 1 to 256 paths"),
        ("[[0], [2, 0]]", r"static tree = without \[2\]: must be listed with every node's parent"),
        ("[[0], [0.5]]", r"path 1 = 0\.5: must be made of integers in \[0, 32\)"),
        ("[0]", "path 0 = int: must be a list of child ranks"),
    ],
)
def test_what_is_no_tree_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    """One line names the file's field, what is wrong and what is allowed."""
    file = tmp_path / "tree.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidArgumentError, match=message):
        read_tree_file(file)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """A file of another kind is no traceback."""
    file = tmp_path / "tree.json"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidArgumentError, match="must be a JSON list"):
        read_tree_file(file)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("policy", "medusa", "speculation.policy = medusa: must be 'eagle2', 'eagle1_static'"),
        ("min_frontier_logprob", 0.5, r"min_frontier_logprob = 0\.5: must be less than or equal"),
        ("min_frontier_logprob", -101, "min_frontier_logprob = -101: must be greater than"),
    ],
)
def test_a_configuration_names_policies_there_are(key: str, value: object, message: str) -> None:
    """Unknown names and thresholds out of range are refused with the limit."""
    with pytest.raises(ConfigError, match=message):
        load_config(flags={f"speculation.{key}": value})
