"""Training records: one JSON object a line, plain text or a prompt with its response."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

USER_HEADER = "<|user|>\n"
ASSISTANT_HEADER = "<|assistant|>\n"
END_OF_TURN = "<|end|>"

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


class Encoder(Protocol):
    """The part of a tokenizer that training needs."""

    bos_token_id: int
    eos_token_id: int

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``; special tokens written in it keep their own ids."""


@dataclass(frozen=True)
class Record:
    """One training example.

    ``response`` is None for plain text, which then stands in ``text``. A record made of a model's
    own outputs carries token ids instead, since text need not encode to the same ids again.
    """

    text: str
    response: str | None = None
    source: str = ""
    prompt_ids: tuple[int, ...] = ()
    output_ids: tuple[int, ...] = ()
    unlikely_from: int | None = None  # output tokens from here on are to become unlikely

    @property
    def num_bytes(self) -> int:
        """UTF-8 length of what the model is scored on: the response, else the text."""
        return len((self.response if self.response is not None else self.text).encode())


@dataclass(frozen=True)
class EncodedRecord:
    """A record as the model reads it: ids and the loss weight of predicting each of them."""

    token_ids: IntArray  # [T]
    loss_weights: FloatArray  # [T], weight of token t as a label; 0 for bos

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])


def read_records(path: Path) -> Iterator[Record]:
    """Read a ``.jsonl`` or ``.jsonl.gz`` file.

    Args:
        path: each line has ``text``, or ``prompt`` and ``response``; other keys are ignored.
    Yields:
        records in file order.
    Raises:
        ValueError: a line that is neither kind, naming file and line number.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            row = _read_row(line, f"{path.name}:{number}")
            source = str(row.get("source", ""))
            if "output_ids" in row:
                prompt_ids, output_ids = tuple(row["prompt_ids"]), tuple(row["output_ids"])
                unlikely_from = row.get("unlikely_from")
                yield Record("", "", source, prompt_ids, output_ids, unlikely_from)
            elif "prompt" in row and "response" in row:
                yield Record(row["prompt"], row["response"], source)
            elif "text" in row:
                yield Record(row["text"], None, source)
            else:
                raise ValueError(f"{path.name}:{number}: needs `text`, or `prompt` and `response`")


def _read_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: no JSON: {error}") from None
    if not isinstance(row, dict) or not all(
        isinstance(row.get(name, ""), str) for name in ("text", "prompt", "response")
    ):
        raise ValueError(f"{where}: needs an object whose texts are strings")
    return row


def data_files(folder: Path) -> dict[str, Path]:
    """Data files of a folder by name without suffixes.

    Raises:
        ValueError: the folder has none.
    """
    found = {
        path.name.split(".jsonl")[0]: path
        for path in sorted(folder.glob("*.jsonl*"))
        if path.name.endswith((".jsonl", ".jsonl.gz"))
    }
    if not found:
        raise ValueError(f"data folder {folder}: no *.jsonl or *.jsonl.gz file in it")
    return found


def read_files(folder: Path, names: Iterable[str]) -> dict[str, list[Record]]:
    """Records of a folder's files by name without suffixes.

    Args:
        folder: of data files.
        names: files wanted.
    Raises:
        ValueError: there is no such file.
    """
    files, wanted = data_files(folder), list(names)
    missing = [name for name in wanted if name not in files]
    if missing:
        raise ValueError(f"mix: no file `{missing[0]}` in {folder} (there are: {', '.join(files)})")
    return {name: list(read_records(files[name])) for name in wanted}


def chat_prompt(prompt: str) -> str:
    """The text in front of a response to a single user turn (without bos)."""
    return f"{USER_HEADER}{prompt}{END_OF_TURN}\n{ASSISTANT_HEADER}"


def encode_record(record: Record, encoder: Encoder, prompt_weight: float = 0.0) -> EncodedRecord:
    """Token ids and loss weights of one record.

    The prompt is encoded apart from the response, as at inference, so no token straddles both.

    Args:
        record: what to encode.
        encoder: the tokenizer.
        prompt_weight: loss weight of prompt tokens, in [0, 1].
    Returns:
        bos, then the tokens, then end-of-turn; bos weighs 0, text and response 1. In a record with
        ``unlikely_from`` the output weighs 0 before that token and -1 from it on, without an
        end-of-turn.
    """
    if record.output_ids:
        head: list[int] = list(record.prompt_ids[1:])  # without its bos
        tail = list(record.output_ids)
    elif record.response is None:
        head = []
        tail = encoder.encode(record.text, add_special_tokens=False)
    else:
        head = encoder.encode(chat_prompt(record.text), add_special_tokens=False)
        tail = encoder.encode(record.response, add_special_tokens=False)
    if record.unlikely_from is not None:
        return _unlikely(head, tail, record.unlikely_from, encoder.bos_token_id)
    ids = [encoder.bos_token_id, *head, *tail, encoder.eos_token_id]
    weights = np.ones(len(ids), dtype=np.float32)
    weights[0] = 0.0
    weights[1 : 1 + len(head)] = prompt_weight
    return EncodedRecord(np.asarray(ids, dtype=np.int64), weights)


def _unlikely(head: list[int], tail: list[int], first: int, bos_token_id: int) -> EncodedRecord:
    ids = np.asarray([bos_token_id, *head, *tail], dtype=np.int64)
    weights = np.zeros(len(ids), dtype=np.float32)
    weights[1 + len(head) + first :] = -1.0
    return EncodedRecord(ids, weights)
