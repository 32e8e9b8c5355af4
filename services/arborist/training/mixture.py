"""Weighted sampling of packed training sequences, a pure function of (seed, batch index)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from arborist.training.records import (
    EncodedRecord,
    Encoder,
    Record,
    encode_record,
)


@dataclass(frozen=True)
class Batch:
    """Packed sequences."""

    token_ids: torch.Tensor  # [B, T] int64
    loss_weights: torch.Tensor  # [B, T] float32, weight of each token as a label; < 0: unlikelihood


class Mixture:
    """Draws records from several files by token share and packs them into rows.

    Nothing is kept between calls: batch ``i`` depends on the seed and ``i`` alone, so a run
    that stops and resumes sees the same data as one that does not.
    """

    def __init__(
        self,
        records: Mapping[str, Sequence[Record]],
        shares: Mapping[str, float],
        encoder: Encoder,
        seed: int = 0,
        prompt_weight: float = 0.0,
    ) -> None:
        """Take the records and their shares.

        Args:
            records: records by file name.
            shares: wanted share of the sampled tokens by file name; others are left out.
            encoder: tokenizer.
            seed: of the whole order.
            prompt_weight: loss weight of prompt tokens.
        Raises:
            ValueError: a share for a file that is not there or empty, or no positive share.
        """
        self._names = [name for name, share in shares.items() if share > 0]
        if not self._names:
            raise ValueError("mixture: at least one file needs a share above 0")
        for name in self._names:
            if not records.get(name):
                raise ValueError(f"mixture: no records for `{name}`")
        self._records = records
        self._encoder = encoder
        self._seed = seed
        self._prompt_weight = prompt_weight
        # Shares are of tokens, draws are of records: divide by the mean record length.
        draws = np.array([shares[name] / _mean_characters(records[name]) for name in self._names])
        self._draw_probabilities = draws / draws.sum()
        self._encode = lru_cache(maxsize=4096)(self._encode_uncached)

    def batch(self, index: int, num_rows: int, num_columns: int) -> Batch:
        """Batch ``index``.

        Args:
            index: batch number from 0.
            num_rows: sequences B.
            num_columns: length T of each, in tokens.
        Returns:
            rows that each begin with a record's bos; the last record of a row is cut.
        """
        token_ids = np.zeros((num_rows, num_columns), dtype=np.int64)
        weights = np.zeros((num_rows, num_columns), dtype=np.float32)
        for row in range(num_rows):
            generator = np.random.default_rng((self._seed, index, row))
            filled = 0
            while filled < num_columns:
                encoded = self._draw(generator)
                count = min(len(encoded), num_columns - filled)
                token_ids[row, filled : filled + count] = encoded.token_ids[:count]
                weights[row, filled : filled + count] = encoded.loss_weights[:count]
                filled += count
        return Batch(torch.from_numpy(token_ids), torch.from_numpy(weights))

    def _draw(self, generator: np.random.Generator) -> EncodedRecord:
        name = self._names[int(generator.choice(len(self._names), p=self._draw_probabilities))]
        return self._encode(name, int(generator.integers(len(self._records[name]))))

    def _encode_uncached(self, name: str, index: int) -> EncodedRecord:
        return encode_record(self._records[name][index], self._encoder, self._prompt_weight)


def _mean_characters(records: Sequence[Record]) -> float:
    # Token ids count as three characters each: the mean of this project's tokenizer.
    total = sum(
        len(record.text)
        + len(record.response or "")
        + 3 * (len(record.prompt_ids) + len(record.output_ids))
        for record in records
    )
    return max(1.0, total / len(records))
