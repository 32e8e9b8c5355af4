"""The process in which schemas are tried before they are compiled where sessions live."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import weakref
from collections.abc import Mapping
from typing import Any

from arborist.common.inherited_config import inherited_environment

# Beyond a schema's own processor time: for a busy machine, and for the process to come up.
_WAIT_S = 15.0


class GrammarTrial:
    """Tries one schema at a time. Its process starts with the first one and ends with its owner."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        """Prepares a trial.

        Args:
            setup: `tokenizer`, `vocab_size`, `eos_token_ids`, `compile_s`, `compile_bytes`.
        """
        self._setup = dict(setup)
        self._process: subprocess.Popen[str] | None = None
        self._stop: weakref.finalize[..., GrammarTrial] | None = None

    def reason_against(self, schema: str) -> str:
        """Returns why a schema cannot be compiled; empty = it can.

        Args:
            schema: JSON text.
        """
        for _ in range(2):
            answer = self._ask(schema)
            if answer is not None:
                return answer
            self.close()  # It hangs or is gone: once more with a new one.
        return "it could not be tried"

    def close(self) -> None:
        """Ends the process; the next schema starts another."""
        if self._stop is not None:
            self._stop()
        self._process, self._stop = None, None

    def _ask(self, schema: str) -> str | None:
        """Returns the answer of the process; None = there is none."""
        try:
            process = self._process or self._start()
            if process.stdin is None or process.stdout is None:
                return None
            _send(process, schema)
            ready, _, _ = select.select([process.stdout], [], [], _WAIT_S)
            line = process.stdout.readline() if ready else ""
        except OSError:
            return None
        return str(json.loads(line)) if line else None

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "arborist.target.trial_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=inherited_environment(),
        )
        self._process = process
        self._stop = weakref.finalize(self, _end, process)
        _send(process, self._setup)
        return process


def _send(process: subprocess.Popen[str], message: object) -> None:
    if process.stdin is not None:
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            # What it still holds has nowhere to go.
            with contextlib.suppress(OSError):
                pipe.close()
