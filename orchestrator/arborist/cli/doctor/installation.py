"""What is installed here and what it may compute on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = {
    "arborist": "arborist",
    "torch": "torch",
    "transformers": "transformers",
    "grpc": "grpcio",
    "ray": "ray",
}
_MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Installation:
    """Versions and devices.

    Attributes:
        versions: By name; "missing" for a package that is not there.
        devices: cpu first, then every GPU, each in words.
    """

    versions: dict[str, str]
    devices: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Returns the packages that are not there."""
        return tuple(name for name, found in self.versions.items() if found == _MISSING)


def installation() -> Installation:
    """Looks at this process's Python, packages and devices; imports torch, but not Ray."""
    import torch

    versions = {"python": platform.python_version()}
    for name, package in _PACKAGES.items():
        try:
            versions[name] = version(package)
        except PackageNotFoundError:
            versions[name] = _MISSING
    cores = len(os.sched_getaffinity(0))
    devices = [f"cpu: {platform.machine()}, {cores} cores, {torch.get_num_threads()} threads"]
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index}: {found.name}, {found.total_memory / 1e9:.0f} GB")
    return Installation(versions, tuple(devices))
