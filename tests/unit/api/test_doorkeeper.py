"""Who may come in."""

import logging
import os
from pathlib import Path

import pytest

from arborist.common.api_key import (
    ApiKey,
    api_key_line,
    key_digest,
    new_api_key,
    read_key_file,
)
from arborist.core.errors import InvalidArgumentError, UnauthenticatedError
from arborist.orchestrator.api import doorkeeper
from arborist.orchestrator.api.client_key import client_key
from arborist.orchestrator.api.doorkeeper import Doorkeeper

ALICE, ALICE_TOO, BOB = (new_api_key() for _ in range(3))


def key(name: str, secret: str, expires_s: float | None = None) -> ApiKey:
    """A key that is let in."""
    return ApiKey(name, key_digest(secret.encode()), expires_s)


def bearer(secret: str) -> list[tuple[str, str | bytes]]:
    """Headers with a key."""
    return [("authorization", f"Bearer {secret}")]


def write(path: Path, *keys: ApiKey) -> None:
    """Replaces a key file, as seen from the outside."""
    fresh = path.with_suffix(".new")
    fresh.write_text(
        "# name digest expires\n\n" + "".join(f"{api_key_line(one)}\n" for one in keys)
    )
    os.replace(fresh, path)


def test_without_keys_everybody_comes_in() -> None:
    """A key that nobody asked for says whose requests are counted together, as an address does."""
    door = Doorkeeper()

    assert not door.asks
    assert door.admit([], "ipv4:10.0.0.1:5") == "10.0.0.1"
    assert door.admit(bearer("x"), "") == client_key(bearer("x"), "")


def test_keys_of_one_name_are_one_client() -> None:
    """So a key can be replaced without losing what belongs to the client, by either header."""
    door = Doorkeeper([key("alice", ALICE), key("alice", ALICE_TOO), key("bob", BOB)])

    alice = door.admit(bearer(ALICE), "")
    assert alice == door.admit([("x-api-key", ALICE_TOO.encode())], "10.0.0.1:1")
    assert alice == door.admit([("authorization", f"bEARER  {ALICE} ")], "")
    assert alice != door.admit(bearer(BOB), "")
    assert ALICE not in alice


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearer("wrong" * 5),
        bearer(""),
        bearer(ALICE[:-1]),
        bearer(key_digest(ALICE.encode())),
        [("authorization", ALICE)],
        [("authorization", f"Basic {ALICE}")],
        [("x-api-key", "")],
    ],
)
def test_whoever_has_no_key_stays_outside(headers: list[tuple[str, str | bytes]]) -> None:
    """Nothing, a wrong one, a digest in its place, another scheme: refused without repeating it."""
    with pytest.raises(UnauthenticatedError) as caught:
        Doorkeeper([key("alice", ALICE)]).admit(headers, "10.0.0.1:1")

    assert ALICE[:-1] not in str(caught.value)


def test_a_key_ends_at_its_time() -> None:
    """At the very second."""
    now_s = [99.0]
    door = Doorkeeper([key("alice", ALICE, expires_s=100.0)], clock=lambda: now_s[0])

    assert door.admit(bearer(ALICE), "")
    now_s[0] = 100.0
    with pytest.raises(UnauthenticatedError):
        door.admit(bearer(ALICE), "")


def test_a_changed_file_counts(tmp_path: Path) -> None:
    """A key that is taken out is refused, one that is new is let in; fixed keys stay."""
    path = tmp_path / "keys"
    write(path, key("bob", BOB, expires_s=4_000_000_000.0))
    door = Doorkeeper([key("alice", ALICE)], path)
    assert door.admit(bearer(BOB), "")

    write(path, key("alice", ALICE_TOO))
    assert door.reload()
    assert not door.reload()

    assert door.admit(bearer(ALICE), "") == door.admit(bearer(ALICE_TOO), "")
    with pytest.raises(UnauthenticatedError):
        door.admit(bearer(BOB), "")


def test_an_empty_file_locks_everybody_out(tmp_path: Path) -> None:
    """No keys left is not the same as no keys configured."""
    path = tmp_path / "keys"
    write(path, key("bob", BOB))
    door = Doorkeeper(key_file=path)

    write(path)
    door.reload()
    door.reload()

    assert door.asks
    with pytest.raises(UnauthenticatedError):
        door.admit(bearer(BOB), "")


def test_a_file_that_is_being_written_locks_nobody_out(tmp_path: Path) -> None:
    """Written in place it is empty, or half, for a moment: only what stays as it is counts."""
    path = tmp_path / "keys"
    write(path, key("bob", BOB))
    door = Doorkeeper(key_file=path)
    whole = path.read_text() + api_key_line(key("alice", ALICE)) + "\n"

    for end in (0, 20, len(whole) - 10):
        path.write_text(whole[:end])
        assert door.reload()  # Look again soon.
        assert door.admit(bearer(BOB), "")
    path.write_text(whole)
    assert door.reload()
    assert not door.reload()

    assert door.admit(bearer(BOB), "")
    assert door.admit(bearer(ALICE), "")


def test_a_file_that_changes_while_it_is_read_is_read_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of it may be of two files."""
    path = tmp_path / "keys"
    write(path, key("bob", BOB))
    door = Doorkeeper(key_file=path)
    write(path)
    assert door.reload()

    def read_late(path: Path) -> list[ApiKey]:
        found = read_key_file(path)
        write(path, key("bob", BOB), key("alice", ALICE))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(doorkeeper, "read_key_file", read_late)
        assert door.reload()
    assert door.admit(bearer(BOB), "")
    assert not door.reload()

    assert door.admit(bearer(ALICE), "")


@pytest.mark.parametrize(
    ("keys", "said"), [([], "every request is let in"), ([key("a", ALICE)], "need an API key; 1")]
)
def test_the_log_says_whether_keys_are_asked_for(
    caplog: pytest.LogCaptureFixture, keys: list[ApiKey], said: str
) -> None:
    """So an open server is seen to be one."""
    with caplog.at_level(logging.INFO):
        Doorkeeper(keys).announce()

    assert said in caplog.text


def test_refusals_are_counted_by_door_and_told_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever tries keys is seen, and cannot fill the log."""
    now_s = [1000.0]
    counted: list[str] = []
    door = Doorkeeper([key("a", ALICE)], clock=lambda: now_s[0], count_refusal=counted.append)

    for at in ("http", "http", "grpc"):
        door.note_refusal(at)
    now_s[0] += 60
    door.note_refusal("grpc")

    assert counted == ["http", "http", "grpc", "grpc"]
    said = [one.getMessage().rpartition(": ")[2] for one in caplog.records]
    assert said == ["http 1", "grpc 2, http 2"]


@pytest.mark.parametrize("broken", [None, f"bob {BOB}\n", "bob sha256:12\n", "\xff"])
def test_a_file_that_breaks_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    """Gone or malformed: the keys stay as they were, the log says why, without any key."""
    path = tmp_path / "keys"
    write(path, key("bob", BOB))
    door = Doorkeeper(key_file=path)
    if broken is None:
        path.unlink()
    else:
        path.write_text(broken, encoding="latin-1")

    with caplog.at_level(logging.INFO):
        for _ in range(4):
            door.reload()

    assert door.admit(bearer(BOB), "")
    assert [one.levelname for one in caplog.records] == ["ERROR"]
    assert BOB not in caplog.text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"bob {BOB}", "line 1"),
        (f"\nb/b {key_digest(b'x')}", "line 2"),
        (f"bob {key_digest(b'x')} soon", "line 1 = column 3: must be a date or time"),
        (f"bob {key_digest(b'x')} {BOB}", "line 1 = column 3"),
        (f"{BOB}! {key_digest(b'x')}", "line 1 = column 1"),
        (f"bob {key_digest(b'x')} 9999-12-31T23:59:59-05:00", "before the year 10000"),
        (f"bob {key_digest(b'x')} 2027-01-31 more", "line 1"),
    ],
)
def test_a_malformed_file_is_refused_at_start(tmp_path: Path, text: str, told: str) -> None:
    """By its line; a key that stands there in the clear is not repeated."""
    path = tmp_path / "keys"
    path.write_text(text)

    with pytest.raises(InvalidArgumentError) as caught:
        Doorkeeper(key_file=path)

    assert told in caught.value.message
    assert BOB not in caught.value.message
