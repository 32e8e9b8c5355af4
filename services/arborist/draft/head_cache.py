"""Heads of other formats, converted once and kept for the next start."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from arborist.common.model_files import CONFIG, ModelFiles, tensor_digest
from arborist.core.errors import InvalidArgumentError
from arborist.draft.checkpoint import is_servable
from arborist.draft.language_model_files import is_language_model
from arborist.draft.published_files import PublishedFiles
from arborist.draft.target_vocabulary import load_target_vocabulary

Convert: TypeAlias = Callable[[PublishedFiles, Path], None]
"""Converts a head into a folder that does not exist yet, or raises."""

ORIGIN = "origin.json"
"""Says in a cached head's folder where it came from."""
# Part of every key: raise it when the import writes something else for the same head.
_FORM = 1
_KEY_LENGTH = 16


@dataclass(frozen=True, slots=True)
class CachedHead:
    """A head that workers can read.

    Attributes:
        model: Its folder, or the hub name as given.
        revision: Commit of a hub name; None = a folder.
        line: What was done, for the log; empty = the head could be read as it is.
    """

    model: str
    revision: str | None
    line: str = ""


class HeadCache:
    """A folder of converted heads, shared by every process of a user."""

    def __init__(self, folder: Path, convert: Convert) -> None:
        """Touches nothing yet.

        Args:
            folder: Made when the first head is converted.
            convert: Does the converting; where pickled files may be opened is its business.
        """
        self._folder = folder
        self._convert = convert

    def servable(
        self,
        source: str,
        target: str,
        *,
        revision: str | None = None,
        target_revision: str | None = None,
    ) -> CachedHead:
        """Returns a draft as it is when workers can read it, else its converted form.

        A draft that is a language model of its own is never converted.

        Args:
            source: Folder or hub name of the head.
            target: Folder or hub name of its target.
            revision: Branch, tag or commit of a hub head.
            target_revision: Branch, tag or commit of a hub target.
        Raises:
            InvalidArgumentError: There is no such model, or the cache cannot be written.
            MismatchError: The head is broken, unknown, or belongs to another target.
        """
        files = PublishedFiles(source, revision)
        if not files.weights().pickled and _is_read_as_it_is(ModelFiles(files.folder)):
            return CachedHead(source, files.commit)
        kept = self._folder / self._key(files, target, target_revision)
        named = source if files.commit is None else f"{source}@{files.commit}"
        if (kept / CONFIG).is_file():
            return CachedHead(str(kept), None, f"head {named}: converted before, read from {kept}")
        self._fill(files, kept)
        return CachedHead(str(kept), None, f"head {named}: converted into {kept}")

    def _key(self, files: PublishedFiles, target: str, target_revision: str | None) -> str:
        # Whose LM head a head uses is settled by comparing it with the target's.
        tables = load_target_vocabulary(target, revision=target_revision)
        parts = [
            _FORM,
            files.source if files.commit else str(files.folder.resolve()),
            files.commit,
            files.digest(),
            tables.embedding_digest,
            tensor_digest(tables.lm_head),
        ]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_KEY_LENGTH]
        return f"{Path(files.source).name or 'head'}-{key}"

    def _fill(self, files: PublishedFiles, kept: Path) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=".converting-", dir=self._folder))
        except OSError as error:
            raise InvalidArgumentError(
                "cache folder",
                self._folder,
                f"writable ({error.strerror}); XDG_CACHE_HOME moves it",
            ) from None
        try:
            converted = work / "head"
            self._convert(files, converted)
            origin = {"source": files.source, "revision": files.commit, "digest": files.digest()}
            (converted / ORIGIN).write_text(f"{json.dumps(origin, indent=2)}\n", encoding="utf-8")
            try:
                converted.rename(kept)
            except OSError:
                # Another process was faster with the same head.
                if not (kept / CONFIG).is_file():
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _is_read_as_it_is(files: ModelFiles) -> bool:
    return is_language_model(files.config, files.shards) or is_servable(files)
