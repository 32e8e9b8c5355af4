"""Lines on stdout when nobody reads them any more."""

from __future__ import annotations

import subprocess
import sys

WRITER = """
from arborist.cli.trace.trace_output import TraceOutput
with TraceOutput(None) as output:
    for _ in range(100_000):
        output.write("x" * 80)
"""


def test_a_reader_that_has_enough_ends_the_command_quietly() -> None:
    """As with `| head`: no traceback, no message."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"x" * 80 + b"\n"
        process.stdout.close()
        complaints = process.stderr.read()
        assert process.wait(timeout=60) == 0

    assert complaints == b""
