"""The draft of a configuration, made ready for workers, which read one form only."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from arborist.common.cache_config import cache_directory
from arborist.core.errors import MismatchError

if TYPE_CHECKING:
    from arborist.common.config import ArboristConfig
    from arborist.draft.published_files import PublishedFiles

HEADS = "heads"
"""Folder of converted heads, inside the cache directory."""

_log = logging.getLogger(__name__)


def with_servable_draft(
    settings: ArboristConfig, *, say: Callable[[str], object] | None = None
) -> ArboristConfig:
    """Returns the configuration with a draft that workers can read.

    A head of another format is converted once into the cache; a hub name is pinned to the commit
    that was found. One line says so.

    Args:
        settings: As given.
        say: Takes the line; None = it is logged.
    Raises:
        ArboristError: There is no such head or target, or the head cannot be converted.
    """
    draft = settings.draft
    if draft.model is None:
        return settings  # The embedded pair.
    source = draft.resolved_model()
    # Imports torch, which a command that serves the embedded pair does without.
    from arborist.draft.head_cache import HeadCache

    target = draft.resolved_target_model()

    def convert(files: PublishedFiles, folder: Path) -> None:
        convert_elsewhere(files, folder, target, draft.target_revision)

    head = HeadCache(cache_directory() / HEADS, convert).servable(
        source, target, revision=draft.revision, target_revision=draft.target_revision
    )
    if head.line and say is not None:
        say(head.line)
    elif head.line:
        _log.info("%s", head.line)
    changes = {"model": head.model, "revision": head.revision, "name": draft.served_name()}
    return settings.model_copy(update={"draft": draft.model_copy(update=changes)})


def convert_elsewhere(
    files: PublishedFiles, folder: Path, target: str, target_revision: str | None
) -> None:
    """Converts a head in a process of its own, the only one that may open a pickled file.

    Args:
        files: Of the head.
        folder: Where to; not there yet.
        target: Folder or hub name of its target.
        target_revision: Branch, tag or commit of a hub target.
    Raises:
        MismatchError: It was refused; the message is that process's last line.
    """
    # All of them, before the other process looks for them in their folder.
    files.weights()
    command = [
        *(sys.executable, "-m", "arborist.cli.main", "import-head"),
        *(str(files.folder), str(folder), "--target", target, "--max-tokens", "0"),
        *(() if target_revision is None else ("--target-revision", target_revision)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        reason = said[-1].removeprefix("arborist: ").replace(str(files.folder), files.source)
        raise MismatchError(f"cannot convert head {files.source}: {reason}")
