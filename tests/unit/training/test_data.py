"""Records, loss weights and packing."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from tests.unit.training.models import LetterEncoder

from arborist.training.mixture import Mixture
from arborist.training.records import Record, data_files, encode_record, read_records

ENCODER = LetterEncoder()


def test_loss_falls_on_response_and_end_only() -> None:
    """Only the response and the end token weigh as labels."""
    encoded = encode_record(Record("ab", "cde"), ENCODER)
    assert encoded.token_ids[0] == ENCODER.bos_token_id
    assert encoded.token_ids[-1] == ENCODER.eos_token_id
    assert encoded.loss_weights.tolist()[-4:] == [1.0, 1.0, 1.0, 1.0]
    assert not encoded.loss_weights[:-4].any()


def test_prompt_weight_reaches_the_prompt_but_not_bos() -> None:
    """A prompt weight applies to every prompt token."""
    encoded = encode_record(Record("ab", "c"), ENCODER, prompt_weight=0.25)
    assert encoded.loss_weights[0] == 0.0
    assert set(encoded.loss_weights[1:-2].tolist()) == {0.25}


def test_plain_text_weighs_everywhere() -> None:
    """Every token of a plain text is a label."""
    encoded = encode_record(Record("abc"), ENCODER)
    assert encoded.loss_weights.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]


def test_own_output_keeps_its_ids() -> None:
    """A record of token ids is taken as it is, with the end token behind it."""
    encoded = encode_record(Record("", "", "", (0, 7, 8), (9, 10)), ENCODER)
    assert encoded.token_ids.tolist() == [0, 7, 8, 9, 10, 1]
    assert encoded.loss_weights.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]


def test_reading_names_file_and_line_of_a_bad_record(tmp_path: Path) -> None:
    """A record without text or response is refused by file and line."""
    path = tmp_path / "bad.jsonl.gz"
    with gzip.open(path, "wt") as lines:
        lines.write(json.dumps({"text": "a"}) + "\n" + json.dumps({"prompt": "a"}) + "\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl\.gz:2"):
        list(read_records(path))
    assert list(data_files(tmp_path)) == ["bad"]


def test_empty_data_folder_is_refused(tmp_path: Path) -> None:
    """A folder without data files is named in the error."""
    with pytest.raises(ValueError, match="data folder"):
        data_files(tmp_path)


def mixture(seed: int = 0) -> Mixture:
    """Two files, of which one should give three quarters of the tokens."""
    records = {
        "short": [Record("ab" * number) for number in range(1, 6)],
        "long": [Record("cd" * number) for number in range(10, 40)],
    }
    return Mixture(records, {"short": 0.25, "long": 0.75}, ENCODER, seed)


def test_batches_depend_on_seed_and_index_alone() -> None:
    """The same batch comes again whatever was drawn before; another index or seed differs."""
    first, second = mixture(), mixture()
    second.batch(0, 2, 32)
    assert np.array_equal(first.batch(5, 2, 32).token_ids, second.batch(5, 2, 32).token_ids)
    assert not np.array_equal(first.batch(6, 2, 32).token_ids, second.batch(5, 2, 32).token_ids)
    assert not np.array_equal(first.batch(5, 2, 32).token_ids, mixture(1).batch(5, 2, 32).token_ids)


def test_rows_are_full_and_begin_with_a_record() -> None:
    """Every row starts with bos and has no padding."""
    batch = mixture().batch(3, 4, 64)
    assert batch.token_ids.shape == (4, 64)
    assert (batch.token_ids[:, 0] == ENCODER.bos_token_id).all()
    # Only bos is without weight in plain text, so nothing in a row is padding.
    assert ((batch.loss_weights == 0) == (batch.token_ids == ENCODER.bos_token_id)).all()


def test_shares_are_of_tokens() -> None:
    """A file's share of the tokens, not of the records, is what was asked for."""
    ids = mixture().batch(0, 200, 64).token_ids
    long_letters = {ENCODER.encode(letter)[0] for letter in "cd"}
    short_letters = {ENCODER.encode(letter)[0] for letter in "ab"}
    long_count = sum(int((ids == letter).sum()) for letter in long_letters)
    short_count = sum(int((ids == letter).sum()) for letter in short_letters)
    assert 0.65 < long_count / (long_count + short_count) < 0.85


def test_unknown_file_in_a_mixture_is_named() -> None:
    """A share for a file that is not there is refused."""
    with pytest.raises(ValueError, match="other"):
        Mixture({"a": [Record("x")]}, {"other": 1.0}, ENCODER)


def test_unlikely_tokens_weigh_minus_one() -> None:
    """A lap to be made unlikely weighs -1, nothing else weighs, and no end token follows."""
    encoded = encode_record(Record("", "", "", (0, 7), (9, 10, 9, 10), 2), ENCODER)
    assert encoded.token_ids.tolist() == [0, 7, 9, 10, 9, 10]
    assert encoded.loss_weights.tolist() == [0.0, 0.0, 0.0, 0.0, -1.0, -1.0]
