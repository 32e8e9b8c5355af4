"""Validation: bits per byte by file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from arborist.training.records import Encoder, Record, encode_record


@torch.no_grad()
def bits_per_byte(
    model: torch.nn.Module,
    records: Sequence[Record],
    encoder: Encoder,
    max_tokens: int = 1024,
    device: torch.device | str = "cpu",
) -> float:
    """Bits per byte of the responses (of the text, for plain text) under the model.

    A record longer than ``max_tokens`` is cut, and so is its byte count.

    Args:
        model: causal LM that takes ``input_ids`` and returns ``logits``.
        records: validation records.
        encoder: tokenizer.
        max_tokens: longest sequence fed, in tokens.
        device: where the model is.
    Returns:
        total bits over total bytes; NaN when there is nothing to score.
    """
    bits, num_bytes = 0.0, 0.0
    for record in records:
        encoded = encode_record(record, encoder)
        weights = torch.from_numpy(encoded.loss_weights[1:max_tokens]).to(device)  # [T-1]
        kept = float(weights.sum())
        if kept == 0:
            continue
        ids = torch.from_numpy(encoded.token_ids[:max_tokens]).to(device)[None]  # [1, T]
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0].float()  # [T-1, V]
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        bits += float((losses * weights).sum()) / math.log(2)
        num_bytes += record.num_bytes * kept / float(encoded.loss_weights.sum())
    return bits / num_bytes if num_bytes else math.nan


def bits_per_byte_by_file(
    model: torch.nn.Module,
    files: Mapping[str, Sequence[Record]],
    encoder: Encoder,
    max_records: int | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """:func:`bits_per_byte` of each file's first ``max_records`` records; eval mode meanwhile."""
    was_training = model.training
    model.eval()
    try:
        return {
            name: bits_per_byte(model, records[:max_records], encoder, device=device)
            for name, records in files.items()
        }
    finally:
        model.train(was_training)
