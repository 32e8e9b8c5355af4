"""The environment that Ray and all it starts inherit."""

import os

import pytest

from arborist.orchestrator.ray_config import apply_ray_environment


def test_no_key_is_left_for_what_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a client's nor a server's; what was set by hand stays."""
    key = "a-key-of-16-chars"
    given = {
        "ARBORIST_API_KEY": key,
        "ARBORIST_CONTROLLER__API_KEYS": key,
        "RAY_DEDUP_LOGS": "1",
    }
    monkeypatch.setattr(os, "environ", given)

    apply_ray_environment("local")

    assert key not in given.values()
    assert given["RAY_DEDUP_LOGS"] == "1"
    assert given["RAY_USAGE_STATS_ENABLED"] == "0"
