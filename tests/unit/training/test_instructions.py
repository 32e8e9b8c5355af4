"""The project's own instruction records."""

import gzip
import json
import random
from pathlib import Path

from arborist.training.instructions.build import build_instructions
from arborist.training.instructions.derived import full_answer, lead_summary
from arborist.training.instructions.templates import GENERATORS, arithmetic, instruction


def test_every_template_gives_a_clean_pair() -> None:
    """Many draws of each: no empty text, no unfilled field, no stray space."""
    rng = random.Random(0)
    for generator, weight in GENERATORS:
        assert weight > 0
        for _ in range(60):
            prompt, response = generator(rng)
            for text in (prompt, response):
                assert text
                assert text == text.strip()
                assert "{" not in text
                assert "None" not in text


def test_draws_depend_on_the_seed() -> None:
    """The same seed gives the same records."""
    first = [instruction(random.Random(4)) for _ in range(3)]
    assert first == [instruction(random.Random(4)) for _ in range(3)]


def test_arithmetic_is_right() -> None:
    """What the templates say about rectangles is so."""
    rng = random.Random(1)
    checked = 0
    for _ in range(200):
        prompt, response = arithmetic(rng)
        if prompt.startswith("Find the area"):
            words = prompt.rstrip(".").split()
            assert response.endswith(f"= {int(words[-4]) * int(words[-1])}.")
            checked += 1
    assert checked > 5


def test_answer_is_put_into_a_sentence() -> None:
    """Rules that fit give a sentence, others nothing."""
    assert full_answer("Who plays the doctor?", "Ann Lee.") == "Ann Lee plays the doctor."
    assert full_answer("What is the capital?", "Bern.") == "The capital is Bern."
    assert full_answer("Where did the king die?", "Bern.") == "The king died in Bern."
    assert full_answer("Why so?", "Because.") is None


def test_summary_is_made_of_whole_first_sentences() -> None:
    """A summary keeps to the limit and ends with a full stop."""
    text = "One two three four five six seven eight nine. Ten eleven. " + "Word " * 80 + "end."
    assert lead_summary(text) == "One two three four five six seven eight nine. Ten eleven."
    assert lead_summary("Too short.") is None


def test_built_files_are_training_data(tmp_path: Path) -> None:
    """The files hold prompt and response with source and licence, and no duplicates."""
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    with gzip.open(data / "instruct_short.jsonl.gz", "wt") as lines:
        lines.write(json.dumps({"prompt": "Who plays X?", "response": "Y.", "source": "s"}) + "\n")
    counts = build_instructions(data, out, num_templates=200)
    assert counts["own_answers"] == 1
    with gzip.open(out / "own_instructions.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) == counts["own_instructions"] == len({json.dumps(row) for row in rows})
    assert all(set(row) == {"prompt", "response", "source", "licence"} for row in rows)
