"""The command as people meet it: help, version, and one line for whatever goes wrong."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from arborist.cli.failure import INTERRUPTED, report_failure
from arborist.cli.main import main
from arborist.core.errors import InvalidArgumentError, MismatchError


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Runs a command; returns exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` needs no command."""
    code, out, err = run(capsys, "--version")

    assert (code, err) == (0, "")
    assert out.startswith("arborist 0.")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Without arguments the help is shown."""
    code, out, err = run(capsys)

    assert (code, err) == (2, "")
    for command in ("serve", "serve-draft", "serve-target", "demo", "train-target"):
        assert command in out


def test_help_translates_the_knobs(capsys: pytest.CaptureFixture[str]) -> None:
    """People who come from another engine find their names."""
    code, out, _ = run(capsys, "serve", "--help")

    assert code == 0
    for name in ("--speculative-num-draft-tokens", "num_draft_tokens + 1", "total_token"):
        assert name in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve-targt"], "No such command 'serve-targt'"),
        (["serve-target", "--prot", "1"], "No such option: --prot"),
        (["serve-target", "--port", "x"], "Invalid value for '--port'"),
        (["serve-target", "--port", "70000"], "target.port = 70000: must be less than or equal"),
        (["serve-draft", "--dtype", "fp32"], "draft.dtype = fp32: must be 'float32'"),
        (["serve", "--depth", "17"], "speculation.depth = 17: must be less than or equal to 16"),
        (["serve", "--config", "no.yaml"], "config file no.yaml does not exist: check --config"),
        (["serve-target", "--log-level", "loud"], "telemetry.log_level = loud: must be 'debug'"),
    ],
)
def test_wrong_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """Exit code 2, nothing on stdout, one line that names what is wrong."""
    code, out, err = run(capsys, *arguments)

    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_missing_model_folder_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nothing is started, and the line says what to give."""
    code, _, err = run(capsys, "serve", "--model", str(tmp_path / "none"), "--port", "0")

    assert code == 2
    assert "target.model" in err
    assert "no such folder; give a folder with config.json" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InvalidArgumentError("top_p", 0, "in (0, 1]"), 2, "top_p = 0: must be in (0, 1]"),
        (MismatchError("fc.weight is 3 wide"), 1, "fc.weight is 3 wide"),
        (OSError(errno.EADDRINUSE, "Address already in use"), 1, "a port is in use"),
        (ModuleNotFoundError("No module named 'x'", name="x"), 1, "Python module x is missing"),
        (ValueError("two\nlines"), 1, "internal error (ValueError: two lines)"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
    ],
)
def test_a_failure_is_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, message: str
) -> None:
    """No traceback reaches a user, whatever failed."""
    assert report_failure(error) == code
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """Developers can ask for more."""
    try:
        raise ValueError("inside")
    except ValueError as error:
        report_failure(error, debug=True)

    assert "Traceback" in capsys.readouterr().err


def test_the_command_starts_light() -> None:
    """Help and errors do not wait for torch, Ray or transformers to load."""
    heavy = "[m for m in ('torch', 'ray', 'transformers') if m in sys.modules]"
    code = f"import sys, arborist.cli.main as m; m.build_cli(); print({heavy})"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )

    assert done.stdout.strip() == "[]"
