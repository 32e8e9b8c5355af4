"""`arborist create-key`: a key for a client, a line for the server."""

from pathlib import Path

import pytest

from arborist.cli.main import main
from arborist.common.api_key import read_key_file
from arborist.orchestrator.api.doorkeeper import Doorkeeper


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Runs it; returns exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as caught:
        main(["create-key", *arguments])
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out.strip(), captured.err.strip()


def test_created_keys_open_the_door(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line goes behind what is there, in a file that only its owner reads."""
    path = tmp_path / "keys"
    _, alice, _ = run(capsys, "alice", "--file", str(path))
    path.write_text(path.read_text().rstrip("\n"))  # As an editor may leave it.
    code, bob, err = run(capsys, "bob", f"--file={path}", "--expires=2999-01-31")

    assert (code, err) == (0, "")
    assert alice != bob
    assert alice not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert [one.name for one in read_key_file(path)] == ["alice", "bob"]
    assert read_key_file(path)[1].expires_s == 32_474_736_000.0
    door = Doorkeeper(key_file=path)
    for key, name in ((alice, "alice"), (bob, "bob")):
        assert door.admit([("authorization", f"Bearer {key}")], "") == f"key:{name}"


def test_without_a_file_the_line_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The key alone on stdout, for a secret store; the line on stderr."""
    code, key, line = run(capsys, "alice")
    path = tmp_path / "keys"
    path.write_text(line)

    assert code == 0
    assert key not in line
    assert Doorkeeper(key_file=path).admit([("x-api-key", key)], "") == "key:alice"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["two words"], "NAME = two words: must be 1 to 64 of letters"),
        (["a", "--expires", "soon"], "--expires = soon: must be a date or time"),
        (["a", "--expires", "9999-12-31T23:59:59-05:00"], "before the year 10000"),
        (["a", "--expires", "9999-12-31T23:59:59.999999"], "before the year 10000"),
        (
            ["a", "--expires", "2020-01-31"],
            "--expires = 2020-01-31: must be a date or time to come",
        ),
        (["a", "--file", "/nowhere/keys"], "No such file"),
    ],
)
def test_wrong_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    """It says what is wrong, and prints no key."""
    code, out, err = run(capsys, *arguments)

    assert code != 0
    assert out == ""
    assert told in err
    assert len(err.splitlines()) == 1


def test_a_file_that_is_no_key_file_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key appended to something else would lock nobody out, and let nobody in."""
    path = tmp_path / "notes"
    path.write_text("buy milk\n")

    code, out, _ = run(capsys, "alice", "--file", str(path))

    assert (code, out) == (2, "")
    assert path.read_text() == "buy milk\n"
