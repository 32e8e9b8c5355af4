"""The environment that Ray reads: quiet, no usage reports, and which cluster to join."""

from __future__ import annotations

import os

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Serve's own lines go to its log files; ours reach the terminal through Ray's driver.
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # Ray prints each line of a worker once, as it came.
    "RAY_DEDUP_LOGS": "0",
    # Reports of idle memory monitors and metrics agents are of no use to a local cluster.
    "RAY_enable_metrics_collection": "0",
}


def apply_ray_environment() -> None:
    """Sets what is not set yet; call it before Ray is imported."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


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
