"""Files of a head as it was published: a folder or a hub repository, pickled or not, never opened.

Nothing here reads tensors, so a worker's process may use it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from arborist.common.model_files import CONFIG, INDEX, SINGLE_FILE
from arborist.core.errors import InvalidArgumentError, MismatchError

PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Where a head's tensors lie.

    Attributes:
        name: The file, or the index of the files.
        paths: The files themselves.
        pickled: Whether they are pickled; else safetensors.
    """

    name: str
    paths: tuple[Path, ...]
    pickled: bool


class PublishedFiles:
    """Files of one head, fetched when they are asked for, all of them of one revision."""

    def __init__(self, source: str | Path, revision: str | None = None) -> None:
        """Finds config.json.

        Args:
            source: Folder or hub name.
            revision: Branch, tag or commit of a hub name.
        Raises:
            InvalidArgumentError: There is no such model.
            MismatchError: It has no config.json.
        """
        self.source = str(source)
        self._folder = Path(source) if Path(source).is_dir() else None
        self._revision = None if self._folder is not None else revision
        found = self.require(CONFIG)
        if self._folder is None:
            # The hub's cache calls the folder by the commit: a branch that moves meanwhile does
            # not mix two heads.
            self._revision = found.parent.name
        self.folder = found.parent
        self.config: dict[str, Any] = _read_json(found)

    @property
    def commit(self) -> str | None:
        """Returns the commit of a hub head; None = a folder."""
        return self._revision

    def find(self, name: str) -> Path | None:
        """Returns a file's path, fetched if need be; None = there is none.

        Raises:
            InvalidArgumentError: There is no such model.
        """
        if self._folder is not None:
            path = self._folder / name
            return path if path.is_file() else None
        try:
            return Path(hf_hub_download(self.source, name, revision=self._revision))
        except EntryNotFoundError as error:
            if isinstance(error, FileNotFoundError) and name == CONFIG:
                raise self._unknown() from None
            return None
        except (HfHubHTTPError, HFValidationError, OSError):
            raise self._unknown() from None

    def require(self, name: str) -> Path:
        """Returns a file's path.

        Raises:
            InvalidArgumentError: There is no such model.
            MismatchError: There is no such file.
        """
        path = self.find(name)
        if path is None:
            raise MismatchError(f"{self.source} has no {name}")
        return path

    def weights(self) -> WeightFiles:
        """Returns the files of the tensors; safetensors are preferred.

        Raises:
            MismatchError: There are none, or an index is damaged.
        """
        for name, index in ((SINGLE_FILE, INDEX), (PICKLED_FILE, PICKLED_INDEX)):
            pickled = name == PICKLED_FILE
            single = self.find(name)
            if single is not None:
                return WeightFiles(name, (single,), pickled)
            listed = self.find(index)
            if listed is not None:
                shards = sorted(set(dict(_read_json(listed).get("weight_map") or {}).values()))
                paths = tuple(self.require(str(shard)) for shard in shards)
                return WeightFiles(index, paths, pickled)
        raise MismatchError(
            f"{self.source} has neither {SINGLE_FILE} nor {PICKLED_FILE}, nor their index"
        )

    def digest(self) -> str:
        """Returns the SHA-256 of config.json and of the files of the tensors, lower-case hex."""
        sha = hashlib.sha256()
        for path in (self.require(CONFIG), *self.weights().paths):
            with path.open("rb") as file:
                sha.update(hashlib.file_digest(file, "sha256").digest())
        return sha.hexdigest()

    def _unknown(self) -> InvalidArgumentError:
        return InvalidArgumentError(
            "head", self.source, "an existing folder or a hub name that can be downloaded"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MismatchError(f"cannot read {path}: {error}") from None
    if not isinstance(value, dict):
        raise MismatchError(f"{path} is not a JSON object")
    return value
