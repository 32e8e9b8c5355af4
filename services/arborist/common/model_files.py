"""A model's files: a folder or a hub name, safetensors only, read tensor by tensor."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, uint8

from arborist.core.errors import InvalidArgumentError, MismatchError

CONFIG = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDING_SUFFIX = "embed_tokens.weight"


class ModelFiles:
    """Files of one model, fetched from the hub only when they are asked for.

    Attributes:
        source: The folder or hub name, for messages.
        config: config.json.
        shards: File name of every tensor.
    """

    def __init__(self, source: str | Path, revision: str | None = None) -> None:
        """Reads config.json and the names of the tensors, no weights.

        Args:
            source: Folder, or hub name such as "org/model" when no such folder exists.
            revision: Branch, tag or commit; read only for a hub name.
        Raises:
            InvalidArgumentError: There is no such model.
            MismatchError: Its files are not a safetensors checkpoint with a config.json.
        """
        self.source = str(source)
        self._revision = revision
        self._folder = Path(source) if Path(source).is_dir() else None
        config = self._find(CONFIG)
        if config is None:
            raise MismatchError(f"{self.source} has no {CONFIG}")
        self.config: dict[str, Any] = _read_json(config)
        self.shards = self._list_tensors()

    def read(self, *names: str) -> list[Tensor]:
        """Reads tensors on the CPU, in the dtype they are stored in.

        Raises:
            MismatchError: A tensor is missing or its file is damaged.
        """
        tensors: list[Tensor] = []
        for name in names:
            if name not in self.shards:
                raise MismatchError(
                    f"tensor {name} is missing from {self.source}", metadata={"tensor": name}
                )
            path = self._require(self.shards[name])
            try:
                with safe_open(path, framework="pt") as file:
                    tensors.append(file.get_tensor(name))
            except (SafetensorError, OSError) as error:
                raise MismatchError(f"cannot read {name} from {path}: {error}") from None
        return tensors

    def digest(self) -> str:
        """Returns the SHA-256 of config and weights, lower-case hex."""
        sha = hashlib.sha256()
        for name in (CONFIG, *sorted(set(self.shards.values()))):
            with self._require(name).open("rb") as file:
                sha.update(hashlib.file_digest(file, "sha256").digest())
        return sha.hexdigest()

    def embedding_name(self) -> str:
        """Returns the name of the token embedding table.

        Raises:
            MismatchError: No tensor, or more than one, is named like it.
        """
        found = [
            name
            for name in self.shards
            if name == EMBEDDING_SUFFIX or name.endswith(f".{EMBEDDING_SUFFIX}")
        ]
        if len(found) != 1:
            raise MismatchError(
                f"{self.source} has {len(found)} tensors named *{EMBEDDING_SUFFIX}: must be 1"
            )
        return found[0]

    def _find(self, name: str) -> Path | None:
        if self._folder is not None:
            path = self._folder / name
            return path if path.is_file() else None
        try:
            return Path(hf_hub_download(self.source, name, revision=self._revision))
        except EntryNotFoundError as error:
            # Offline, "not in the cache" is the same exception family as "no such file".
            if isinstance(error, FileNotFoundError) and name == CONFIG:
                raise self._unknown() from None
            return None
        except (HfHubHTTPError, HFValidationError, OSError):
            raise self._unknown() from None

    def _unknown(self) -> InvalidArgumentError:
        return InvalidArgumentError(
            "model", self.source, "an existing folder or a hub name that can be downloaded"
        )

    def _require(self, name: str) -> Path:
        path = self._find(name)
        if path is None:
            raise MismatchError(f"{self.source} has no {name}")
        return path

    def _list_tensors(self) -> dict[str, str]:
        single = self._find(SINGLE_FILE)
        if single is not None:
            try:
                with safe_open(single, framework="pt") as file:
                    return dict.fromkeys(file.keys(), SINGLE_FILE)
            except (SafetensorError, OSError) as error:
                raise MismatchError(f"cannot read {single}: {error}") from None
        index = self._find(INDEX)
        if index is None:
            raise MismatchError(
                f"{self.source} has neither {SINGLE_FILE} nor {INDEX}: "
                "only safetensors checkpoints are read, convert the model first "
                "(a draft head with `arborist import-head`)"
            )
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise MismatchError(f"{index} has no weight_map")
        return {str(name): str(file) for name, file in weight_map.items()}


def tensor_digest(tensor: Tensor) -> str:
    """Returns the SHA-256 of a stored tensor's bytes, lower-case hex.

    A worker's `embedding_digest` is that of the target's embedding table as stored, whatever dtype
    the worker runs in, so that a draft and a target can be compared.
    """
    raw = tensor.contiguous().reshape(-1).view(uint8).numpy()
    return hashlib.sha256(raw.data).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MismatchError(f"cannot read {path}: {error}") from None
    if not isinstance(value, dict):
        raise MismatchError(f"{path} is not a JSON object")
    return value
