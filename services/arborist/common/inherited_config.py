"""The environment that processes inherit which are started here: API keys do not travel in it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from arborist.common.api_key import known_by_digest, split_keys
from arborist.common.config import API_KEY_VARIABLE, ENV_PREFIX

_SECTION = f"{ENV_PREFIX}CONTROLLER"
_FIELD = "api_keys"
_KEYS = f"{_SECTION}__{_FIELD.upper()}"
# Stands for what is no key: whoever reads it refuses it, as the text itself would have been.
_MALFORMED = "?"


def inherited_environment() -> dict[str, str]:
    """Returns this process's environment for a child, without a key in it."""
    return _without_keys(os.environ)


def forget_keys() -> None:
    """Takes keys out of this process's environment, for children that others start from here."""
    for name, value in list(os.environ.items()):
        left = _without_keys({name: value})
        if name not in left:
            del os.environ[name]
        elif left[name] != value:
            os.environ[name] = left[name]


def _without_keys(environment: Mapping[str, str]) -> dict[str, str]:
    """Leaves out a client's key; a server's become digests, as it would itself know them."""
    kept: dict[str, str] = {}
    for name, value in environment.items():
        known_as = name.upper()  # Configuration is found in either case.
        if known_as == _KEYS:
            kept[name] = ",".join(_digest(one) for one in split_keys(value))
        elif known_as == _SECTION and _FIELD in value:
            kept[name] = _section_without_keys(value)
        elif known_as != API_KEY_VARIABLE:
            kept[name] = value
    return kept


def _section_without_keys(text: str) -> str:
    try:
        section = json.loads(text)
    except ValueError:
        return _MALFORMED
    if not isinstance(section, dict):
        return _MALFORMED
    if (keys := section.get(_FIELD)) is None:
        return text
    if isinstance(keys, str):
        keys = split_keys(keys)
    if not isinstance(keys, list):
        return _MALFORMED
    return json.dumps({**section, _FIELD: [_digest(one) for one in keys]})


def _digest(key: object) -> str:
    try:
        return known_by_digest(str(key))
    except ValueError:
        return _MALFORMED
