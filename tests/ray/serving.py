"""`arborist serve` as a process, the way a user has it."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests.ray.processes import Process, descendants, still_alive

READY = re.compile(
    r"^ready: http://(?P<http>\S+) grpc://(?P<grpc>\S+) model=(?P<model>\S+) draft=(?P<draft>\S+) "
    r"kv=(?P<kv>\d+) tokens \(fits (?P<sessions>\d+) sessions of (?P<length>\d+) tokens\)$"
)
# Generous: nothing here measures, and the machine may be busy.
START_S = 240
STOP_S = 60


class ServeProcess:
    """A running `arborist serve`, in a process group of its own."""

    def __init__(self, *arguments: str, folder: Path) -> None:
        """Starts it in a folder."""
        self._log = folder / "serve.err"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "arborist.cli.main", "serve", *arguments],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.lines: list[str] = []

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        return self._log.read_text(errors="replace")

    def wait_ready(self) -> dict[str, str]:
        """Returns the parts of the ready line."""
        assert self.process.stdout is not None
        watchdog = threading.Timer(START_S, self.process.kill)
        watchdog.start()
        try:
            for line in self.process.stdout:
                self.lines.append(line.rstrip("\n"))
                if match := READY.match(self.lines[-1]):
                    return match.groupdict()
        finally:
            watchdog.cancel()
        raise AssertionError(f"not ready: {self.lines} {self.log}")

    def replicas(self, deployment: str) -> list[Process]:
        """Returns the replica processes of a deployment."""
        title = f"ray::ServeReplica:arborist:{deployment}"
        return [one for one in descendants(self.process.pid) if one.title.startswith(title)]

    def directory_actor(self) -> list[Process]:
        """Returns the process of the directory actor."""
        brought = descendants(self.process.pid)
        return [one for one in brought if one.title.startswith("ray::WorkerRegistry")]

    def stop(self) -> tuple[int, list[Process]]:
        """Sends Ctrl-C to the group, as a terminal does; returns exit code and what is left."""
        brought = descendants(self.process.pid)
        os.killpg(self.process.pid, signal.SIGINT)
        code = self.process.wait(STOP_S)
        return code, still_alive(brought, within_s=5)

    def kill(self) -> None:
        """Ends whatever is left, when a test failed half-way."""
        if self.process.stdout is not None:
            self.process.stdout.close()
        if self.process.poll() is None:
            brought = descendants(self.process.pid)
            self.process.kill()
            self.process.wait()
            for one in brought:
                if one.alive:
                    one.kill()
