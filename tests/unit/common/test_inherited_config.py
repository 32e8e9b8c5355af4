"""What processes that are started here find in their environment."""

import json
import os
from collections.abc import Mapping

import pytest

from arborist.common.api_key import key_digest
from arborist.common.config import ConfigError, load_config
from arborist.common.inherited_config import forget_keys, inherited_environment

KEY, OTHER = "a-key-of-16-chars", "another-of-16-chars"
DIGESTS = tuple(key_digest(one.encode()) for one in (KEY, OTHER))
GIVEN = [
    {"ARBORIST_CONTROLLER__API_KEYS": f"{KEY}, {OTHER}"},
    {"arborist_controller__api_keys": f"{KEY},{DIGESTS[1]}"},
    {"ARBORIST_CONTROLLER": json.dumps({"api_keys": [KEY, OTHER], "max_n": 3})},
    {"ARBORIST_CONTROLLER": json.dumps({"api_keys": f"{KEY},{OTHER}"})},
]


@pytest.mark.parametrize("given", GIVEN)
def test_a_child_knows_keys_by_their_digests(
    monkeypatch: pytest.MonkeyPatch, given: Mapping[str, str]
) -> None:
    """It asks for the same keys as this process would, and its environment opens no door."""
    monkeypatch.setenv("ARBORIST_API_KEY", OTHER)
    monkeypatch.setenv("ARBORIST_DRAFT__PORT", "9")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    configured = load_config()

    inherited = inherited_environment()

    assert not any(one in value for one in (KEY, OTHER) for value in inherited.values())
    assert inherited["ARBORIST_DRAFT__PORT"] == "9"
    for name in (*given, "ARBORIST_API_KEY"):
        monkeypatch.delenv(name)
    for name, value in inherited.items():
        monkeypatch.setenv(name, value)
    assert load_config() == configured
    assert configured.controller.api_keys == DIGESTS


@pytest.mark.parametrize(
    "given",
    [
        {"ARBORIST_CONTROLLER__API_KEYS": ""},
        {"ARBORIST_CONTROLLER__API_KEYS": "short-secret"},
        {"ARBORIST_CONTROLLER": '{"api_keys": ["short-secret"]}'},
        {"ARBORIST_CONTROLLER": '["api_keys", "short-secret"]'},
        {"ARBORIST_CONTROLLER": '{"api_keys": "short-secret"'},
    ],
)
def test_what_is_refused_here_is_refused_by_a_child(
    monkeypatch: pytest.MonkeyPatch, given: Mapping[str, str]
) -> None:
    """It must not begin without keys because they were malformed."""
    monkeypatch.setattr(os, "environ", dict(given))
    inherited = inherited_environment()
    monkeypatch.setattr(os, "environ", inherited)

    assert not any("secret" in value for value in inherited.values())
    with pytest.raises(ConfigError):
        load_config()


def test_other_settings_of_a_controller_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of keys is no key."""
    text = '{"api_keys_file": "keys.txt"}'
    monkeypatch.setenv("ARBORIST_CONTROLLER", text)

    assert inherited_environment()["ARBORIST_CONTROLLER"] == text


def test_keys_can_be_taken_out_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what Ray starts, which inherits whatever is there."""
    monkeypatch.setenv("ARBORIST_API_KEY", KEY)
    monkeypatch.setenv("ARBORIST_CONTROLLER__API_KEYS", OTHER)

    forget_keys()

    assert "ARBORIST_API_KEY" not in os.environ
    assert os.environ["ARBORIST_CONTROLLER__API_KEYS"] == DIGESTS[1]
