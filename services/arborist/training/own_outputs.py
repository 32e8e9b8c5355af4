"""The target's own greedy outputs for training prompts, as a data file for the head."""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedModel

from arborist.core.loops import loops
from arborist.training.chat_format import ChatFormat
from arborist.training.generation import greedy_outputs
from arborist.training.records import Encoder, Record


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
        (file name, token ids, with bos where the tokenizer has one).
    """
    generator = np.random.default_rng(seed)
    chat = ChatFormat(encoder)
    total = sum(shares.values())
    picked: list[tuple[str, list[int]]] = []
    seen: set[str] = set()
    for name, share in shares.items():
        wanted = round(count * share / total)
        for index in generator.permutation(len(records[name])):
            if wanted == 0:
                break
            record = records[name][int(index)]
            text = record.text if record.response is None else chat.prompt_text(record.text)
            if text in seen:
                continue
            seen.add(text)
            ids = [*chat.begin, *chat.encode(text)]
            if record.response is None:
                ids = ids[:text_tokens]
            if 0 < len(ids) <= max_prompt_tokens:
                picked.append((name, ids))
                wanted -= 1
    return picked


def write_own_outputs(
    model: PreTrainedModel,
    prompts: Sequence[tuple[str, list[int]]],
    path: Path,
    max_new_tokens: int,
    batch_size: int = 64,
    keep_loops: bool = False,
) -> dict[str, int]:
    """Decode all prompts and write the outputs that neither loop nor repeat an earlier one.

    Args:
        model: target, in evaluation mode.
        prompts: (source, token ids with bos).
        path: `.jsonl.gz` file to write.
        max_new_tokens: limit of an output.
        batch_size: prompts decoded together.
        keep_loops: write looping outputs too (to learn not to).
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
            looping = loops(output)
            counts["looping"] += looping
            if looping and not keep_loops:
                continue
            if key in seen and len(output) > 16:
                counts["repeated"] += 1
            else:
                seen.add(key)
                counts["kept"] += 1
                counts["tokens"] += len(output)
                name, ids = prompts[index]
                row = {"prompt_ids": ids, "output_ids": output, "source": name}
                lines.write(json.dumps(row) + "\n")
    return counts


def end_of_first_lap(output_ids: Sequence[int], breaks: Collection[int], length: int = 8) -> int:
    """Where a looping output should have ended.

    Args:
        output_ids: tokens.
        breaks: token ids after which an ending reads well (line ends, full stops).
        length: of the run that counts as a repetition, in tokens.
    Returns:
        number of tokens to keep: up to the last break before the second time some run occurs;
        all of them when no run occurs twice.
    """
    kept = second_lap(output_ids, length)
    if kept == len(output_ids):
        return kept
    while kept < len(output_ids) and output_ids[kept] in breaks:
        kept += 1
    while kept > 0 and output_ids[kept - 1] not in breaks:
        kept -= 1
    return kept


def second_lap(output_ids: Sequence[int], length: int = 8) -> int:
    """Index at which some run of ``length`` tokens begins for the second time, or the length."""
    seen: set[tuple[int, ...]] = set()
    for start in range(len(output_ids) - length + 1):
        run = tuple(output_ids[start : start + length])
        if run in seen:
            return start
        seen.add(run)
    return len(output_ids)


def write_corrections(
    path: Path,
    outputs: Sequence[OwnOutput],
    encoder: Encoder,
    min_tokens: int = 4,
    max_unlikely: int = 24,
) -> dict[str, int]:
    """Write own outputs as chat records that end where they should: data against looping.

    An output that ended by itself stays; one that loops is cut before its second lap, if enough is
    left of it, and comes a second time with that lap to be made unlikely; one that ran into the
    limit without looping says nothing about endings and is left out.

    Args:
        path: `.jsonl.gz` file with token ids; `train-target` reads it like any other data file.
        outputs: with the looping ones.
        encoder: tokenizer.
        min_tokens: shorter ones are left out.
        max_unlikely: tokens of a second lap to make unlikely.
    Returns:
        counts: ``ended``, ``cut``, ``left_out``.
    """
    breaks = break_tokens(encoder)
    newlines = encoder.encode("\n", add_special_tokens=False)
    counts = {"ended": 0, "cut": 0, "left_out": 0}
    with gzip.open(path, "wt", encoding="utf-8") as lines:
        for output in outputs:
            ended = output.output_ids[-1] == encoder.eos_token_id
            body = output.output_ids[:-1] if ended else output.output_ids
            # A run may well occur twice in a good answer (code, tables): three times is a loop.
            kept = end_of_first_lap(body, breaks) if loops(body) else len(body)
            if ended and kept == len(body):
                counts["ended"] += 1
            elif min_tokens <= kept < len(body):
                counts["cut"] += 1
            else:
                counts["left_out"] += 1
                kept = 0
            while kept and body[kept - 1] in newlines:
                kept -= 1
            row: dict[str, object] = {
                "prompt_ids": output.prompt_ids,
                "output_ids": body[:kept],
                "source": f"own output/{output.source}",
            }
            if kept:
                lines.write(json.dumps(row) + "\n")
            if loops(body):
                lap = second_lap(body)
                # The third lap teaches nothing that the second does not.
                row |= {"output_ids": body[: lap + max_unlikely], "unlikely_from": lap}
                lines.write(json.dumps(row) + "\n")
    return counts


def break_tokens(encoder: Encoder) -> set[int]:
    """Token ids of line ends and sentence ends."""
    return {
        encoder.encode(text, add_special_tokens=False)[-1]
        for text in ("\n", "\n\n", ".", ".\n", "!", "?")
    }


def read_own_outputs(path: Path) -> Iterator[OwnOutput]:
    """Read a file of :func:`write_own_outputs`.

    Raises:
        ValueError: a line that is none of its lines, naming file and number.
    """
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                output = OwnOutput(row["prompt_ids"], row["output_ids"], str(row.get("source", "")))
            except (ValueError, KeyError, TypeError, AttributeError):
                output = None
            if output is None or not _are_ids(output.prompt_ids, output.output_ids):
                raise ValueError(f"{path.name}:{number}: needs `prompt_ids` and `output_ids`")
            yield output


def _are_ids(*lists: object) -> bool:
    return all(
        isinstance(ids, list) and all(type(one) is int and one >= 0 for one in ids) for ids in lists
    )
