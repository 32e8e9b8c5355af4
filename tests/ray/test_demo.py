"""`arborist demo` as people first meet it, with the pair that is shipped."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ray.processes import Process, descendants, still_alive

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]
SUMMARY = re.compile(
    r"demo: prompts=3 identical_to_plain=3/3 tau=[\d.]+ tokens_per_s=[\d.]+ "
    r"plain_tokens_per_s=[\d.]+ speedup=[\d.]+"
)


def test_the_demo_streams_compares_and_leaves_nothing(tmp_path: Path) -> None:
    """Three prompts, equal to plain decoding, a table of rounds; then no process, no file."""
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "arborist.cli.main", "demo", "--max-tokens", "8"],
        cwd=here,
        env={**os.environ, "HOME": str(home), "COLUMNS": "160"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    brought: list[Process] = []
    try:
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if line.startswith("ready: "):
                brought = descendants(process.pid)
        code = process.wait()
    finally:
        process.stdout.close()
        process.kill()
        process.wait()

    assert code == 0, lines
    assert SUMMARY.fullmatch(lines[-1]), lines[-1]
    assert [one for one in lines if re.match(r"\[[123]\] ", one)]
    assert any("tau" in one for one in lines[:-1])
    assert brought
    assert still_alive(brought, within_s=5) == []
    assert list(here.iterdir()) == []
