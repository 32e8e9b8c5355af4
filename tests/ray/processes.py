"""Processes as /proc shows them."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One process; the start time tells it from a later one with the same id."""

    pid: int
    parent: int
    start: str
    title: str

    @property
    def alive(self) -> bool:
        """Says whether it still runs; a zombie does not."""
        now = _read(self.pid)
        return now is not None and now.start == self.start

    def kill(self) -> None:
        """Ends it at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def _read(pid: int) -> Process | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name may hold spaces and brackets; what follows the last one does not.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else Process(pid, int(fields[1]), fields[19], title)


def _all() -> Iterator[Process]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            one = _read(int(entry.name))
            if one is not None:
                yield one


def descendants(pid: int) -> list[Process]:
    """Returns everything a process brought, whole generations deep."""
    everyone = list(_all())
    found: list[Process] = []
    parents = {pid}
    while parents:
        children = [one for one in everyone if one.parent in parents]
        found += children
        parents = {one.pid for one in children}
    return found


def still_alive(processes: list[Process], within_s: float) -> list[Process]:
    """Waits for processes to end; returns those that did not."""
    deadline_s = time.monotonic() + within_s
    left = [one for one in processes if one.alive]
    while left and time.monotonic() < deadline_s:
        time.sleep(0.05)
        left = [one for one in left if one.alive]
    return left
