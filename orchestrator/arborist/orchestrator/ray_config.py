"""The environment that Ray reads: quiet, no usage reports, and which cluster to join."""

from __future__ import annotations

import os
from pathlib import Path

from arborist.common.inherited_config import forget_keys

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Serve's own lines go to its log files; ours reach the terminal through Ray's driver.
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # Ray prints each line of a worker once, as it came.
    "RAY_DEDUP_LOGS": "0",
    # Reports of idle memory monitors and metrics agents are of no use to a local cluster.
    "RAY_enable_metrics_collection": "0",
}
# Where Ray itself keeps the token of the clusters it starts here.
_TOKEN_FILE = Path("~/.ray/auth_token")


def apply_ray_environment(configured_address: str | None) -> None:
    """Sets what is not set yet, and takes API keys out, which all that Ray starts would inherit.

    Call it when the configuration is read and before Ray is imported.

    Args:
        configured_address: ``ray.address`` of the configuration.
    """
    forget_keys()
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    # A cluster started by hand asks for a token wherever Ray made one; a driver that joins offers
    # it only when told to.
    if cluster_address(configured_address) is not None and _TOKEN_FILE.expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def cluster_address(configured: str | None) -> str | None:
    """Returns the cluster to join.

    Args:
        configured: ``ray.address`` of the configuration.

    Returns:
        The address; None = start a local cluster of our own.
    """
    address = configured or os.environ.get("RAY_ADDRESS") or None
    return None if address == "local" else address


def forwarded_environment() -> dict[str, str]:
    """Returns what replicas need from this process's environment, wherever Ray places them."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("OTEL_", "HF_")) and "TOKEN" not in name
    }
