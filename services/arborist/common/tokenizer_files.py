"""The tokenizer that lies beside a model's weights, as transformers loads it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from transformers import AutoTokenizer

from arborist.core.errors import MismatchError

# At least one of these lies in every folder that has a tokenizer.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
_MAX_REASON_LENGTH = 200


def load_tokenizer_files(model: str, revision: str | None = None) -> Any | None:
    """Loads the tokenizer of a model.

    Args:
        model: Folder, or hub name when no such folder exists.
        revision: Branch, tag or commit of a hub model.
    Returns:
        A `PreTrainedTokenizerBase`, or None for a model that has none.
    Raises:
        MismatchError: It is there but cannot be loaded; the message says why in one line.
    """
    if not _has_tokenizer(model, revision):
        return None
    try:
        # Without remote code, which is also the default: what a model folder holds is data.
        return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - tokenizers raise plain Exception for a bad file
        reason = " ".join(str(error).split())[:_MAX_REASON_LENGTH]
        raise MismatchError(f"the tokenizer of {model} cannot be loaded: {reason}") from None


def _has_tokenizer(model: str, revision: str | None) -> bool:
    folder = Path(model)
    if folder.is_dir():
        return any((folder / name).is_file() for name in _TOKENIZER_FILES)
    return any(_is_on_hub(model, revision, _TOKENIZER_FILES))


def _is_on_hub(model: str, revision: str | None, names: Iterable[str]) -> Iterable[bool]:
    for name in names:
        try:
            hf_hub_download(model, name, revision=revision)
        except EntryNotFoundError:
            yield False
        except (HfHubHTTPError, HFValidationError, OSError):
            raise MismatchError(
                f"the tokenizer of {model} cannot be read: must be an existing folder or a hub "
                "name that can be downloaded"
            ) from None
        else:
            yield True
