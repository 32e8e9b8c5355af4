"""The process's log: lines for people, or one JSON object per line. Never prompt or output text."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from arborist.common.config import TelemetryConfig

# Chatty at INFO, and of no use to whoever runs a server.
_QUIET = ("httpx", "opentelemetry", "ray", "transformers", "uvicorn.access", "urllib3")


class JsonFormatter(logging.Formatter):
    """One object per line: time, level, logger, role, message, and the traceback of a bug."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "role": self._role,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(config: TelemetryConfig, role: str, stream: TextIO | None = None) -> None:
    """Sends the process's log to a stream; replaces what an earlier call did.

    Args:
        config: Level and format.
        role: ``controller``, ``draft``, ``target`` or the command's name.
        stream: Where to; None = stderr.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    if config.log_format == "json":
        handler.setFormatter(JsonFormatter(role))
    else:
        handler.setFormatter(
            logging.Formatter(f"%(asctime)s %(levelname).1s {role}: %(message)s", "%H:%M:%S")
        )
    handler.set_name("arborist")
    root = logging.getLogger("arborist")
    for present in [one for one in root.handlers if one.get_name() == "arborist"]:
        root.removeHandler(present)
    root.addHandler(handler)
    root.setLevel(config.log_level.upper())
    # Not to the root logger: Ray and transformers put handlers there.
    root.propagate = False
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
