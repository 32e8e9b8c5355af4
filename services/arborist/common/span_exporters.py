"""Where finished spans go: the interface, and a file of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from opentelemetry.sdk.resources import Resource

from arborist.common.config import ConfigError
from arborist.common.span_record import SpanRecord


class SpanExporter(Protocol):
    """Takes batches of finished spans; called from one background thread."""

    def export(self, spans: Sequence[SpanRecord]) -> bool:
        """Delivers a batch; may block. Returns whether it was delivered; never raises."""
        ...

    def shutdown(self) -> None:
        """Ends a blocked `export` and frees everything; called from another thread."""
        ...


class JsonLinesExporter:
    """Appends one JSON object per span to a file, which several processes may share."""

    def __init__(self, path: Path, resource: Resource) -> None:
        """Opens the file.

        Args:
            path: File to append to; made if it does not exist.
            resource: Whose ``service.name`` is written into every line.

        Raises:
            ConfigError: The file cannot be opened.
        """
        self._service = str(resource.attributes.get("service.name", ""))
        try:
            # Unbuffered and appending: a batch is one write, so lines of several processes in
            # one file never mix.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigError(f"trace file {path}: {error.strerror}") from None

    def export(self, spans: Sequence[SpanRecord]) -> bool:
        """Writes a batch."""
        lines = [json.dumps(self._line(span), separators=(",", ":")) for span in spans]
        try:
            self._file.write(("\n".join(lines) + "\n").encode())
        except (OSError, ValueError):  # Disk full; closed by a shutdown that would not wait.
            return False
        return True

    def shutdown(self) -> None:
        """Closes the file."""
        self._file.close()

    def _line(self, span: SpanRecord) -> dict[str, object]:
        line: dict[str, object] = {
            "name": span.name,
            "service": self._service,
            "trace_id": f"{span.trace_id:032x}",
            "span_id": f"{span.span_id:016x}",
            "parent_span_id": f"{span.parent_span_id:016x}" if span.parent_span_id else "",
            "kind": span.kind.name.lower(),
            "start_ns": span.start_ns,
            "end_ns": span.end_ns,
            "attributes": dict(span.attributes),
        }
        if span.error is not None:
            line["error"] = span.error
        return line
