"""The test run itself: what is skipped is counted, and can be forbidden."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

SKIPS_ITSELF = """
import pytest

def test_that_runs():
    pass

@pytest.mark.skip(reason="not today")
def test_that_is_skipped():
    pass
"""
SKIPS_FOR_GPU = """
import pytest

@pytest.mark.gpu
def test_that_needs_a_gpu():
    pytest.skip("needs a CUDA device")
"""
SKIPS_THE_FILE = """
import pytest

pytest.skip("not on this machine", allow_module_level=True)
"""


def run_pytest(folder: Path, source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs one file under the repository's own conftest and settings, in a process of its own."""
    (folder / "conftest.py").write_text(
        (REPOSITORY / "tests/conftest.py").read_text(encoding="utf-8"), encoding="utf-8"
    )
    (folder / "test_planted.py").write_text(source, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-c", str(REPOSITORY / "pyproject.toml")]
    command += ["--rootdir", str(folder), *arguments, str(folder)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_skips_are_counted_in_one_line(tmp_path: Path) -> None:
    """A run with skips passes and says how many and why."""
    run = run_pytest(tmp_path, SKIPS_ITSELF)

    assert run.returncode == 0, run.stdout
    assert "tests skipped: 1: 1 (not today)" in run.stdout


@pytest.mark.parametrize("source", [SKIPS_ITSELF, SKIPS_THE_FILE])
def test_fail_on_skip_fails_the_run(tmp_path: Path, source: str) -> None:
    """With the option a skipped test or file fails the run and is named."""
    run = run_pytest(tmp_path, source, "--fail-on-skip")

    assert run.returncode == 1, run.stdout
    assert "--fail-on-skip: " in run.stdout


def test_fail_on_skip_lets_a_missing_gpu_pass(tmp_path: Path) -> None:
    """A test marked gpu may be skipped even with the option."""
    run = run_pytest(tmp_path, SKIPS_FOR_GPU, "--fail-on-skip")

    assert run.returncode == 0, run.stdout
    assert "tests skipped: 1" in run.stdout
