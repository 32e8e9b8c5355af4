"""The target's own greedy outputs for training prompts, as a data file for the head."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import LlamaForCausalLM

from arborist.training.generation import greedy_outputs, loops
from arborist.training.records import Encoder, Record, chat_prompt


@dataclass(frozen=True)
class OwnOutput:
    """A prompt and what the target says to it, in token ids."""

    prompt_ids: list[int]
    output_ids: list[int]
    source: str


def pick_prompts(
    records: Mapping[str, Sequence[Record]],
    shares: Mapping[str, float],
    count: int,
    encoder: Encoder,
    max_prompt_tokens: int = 512,
    text_tokens: int = 48,
    seed: int = 0,
) -> list[tuple[str, list[int]]]:
    """Prompts by file share: chat prompts, or the beginning of a plain text.

    Args:
        records: by file.
        shares: of the prompts, by file.
        count: prompts in all; a small file may give fewer, since none is taken twice.
        encoder: tokenizer.
        max_prompt_tokens: longer ones are passed over.
        text_tokens: tokens of a plain text that make a prompt.
        seed: of the choice.
    Returns:
        (file name, token ids with bos).
    """
    generator = np.random.default_rng(seed)
    total = sum(shares.values())
    picked: list[tuple[str, list[int]]] = []
    seen: set[str] = set()
    for name, share in shares.items():
        wanted = round(count * share / total)
        for index in generator.permutation(len(records[name])):
            if wanted == 0:
                break
            record = records[name][int(index)]
            text = record.text if record.response is None else chat_prompt(record.text)
            if text in seen:
                continue
            seen.add(text)
            ids = [encoder.bos_token_id, *encoder.encode(text, add_special_tokens=False)]
            if record.response is None:
                ids = ids[:text_tokens]
            if len(ids) <= max_prompt_tokens:
                picked.append((name, ids))
                wanted -= 1
    return picked


def write_own_outputs(
    model: LlamaForCausalLM,
    prompts: Sequence[tuple[str, list[int]]],
    path: Path,
    max_new_tokens: int,
    batch_size: int = 64,
) -> dict[str, int]:
    """Decode all prompts and write the outputs that neither loop nor repeat an earlier one.

    Returns:
        counts: ``kept``, ``looping``, ``repeated``, ``tokens``.
    """
    counts = {"kept": 0, "looping": 0, "repeated": 0, "tokens": 0}
    seen: set[tuple[int, ...]] = set()
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as lines, tqdm(total=len(prompts)) as bar:
        for index, output in greedy_outputs(
            model, [ids for _, ids in prompts], max_new_tokens, batch_size
        ):
            bar.update()
            key = tuple(output)
            if loops(output):
                counts["looping"] += 1
            elif key in seen and len(output) > 16:
                counts["repeated"] += 1
            else:
                seen.add(key)
                counts["kept"] += 1
                counts["tokens"] += len(output)
                name, ids = prompts[index]
                row = {"prompt_ids": ids, "output_ids": output, "source": name}
                lines.write(json.dumps(row) + "\n")
    return counts


def read_own_outputs(path: Path) -> Iterator[OwnOutput]:
    """Read a file of :func:`write_own_outputs`."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield OwnOutput(**json.loads(line))
