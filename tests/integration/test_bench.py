"""A benchmark's own workers: every mode asks the draft it needs."""

import json
from pathlib import Path

from tests.integration.loopback import PAIR
from tests.unit.api.tokenizers import byte_level_tokenizer

from arborist.cli.bench.contest import BenchSettings, open_contest
from arborist.cli.bench.output import Output
from arborist.cli.bench.questions import Question
from arborist.core.shape import TreeShape

NUM_FREQUENT = 40


async def test_every_mode_asks_the_draft_it_needs(tmp_path: Path) -> None:
    """One run, one target, three drafts: each mode asks its own.

    frspec proposes the file's tokens only, eagle2 any token, and the target as a language-model
    draft of itself is always right.
    """
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps(list(range(512))))
    settings = BenchSettings(
        target=str(PAIR / "target"),
        draft=str(PAIR / "eagle_head"),
        modes=("plain", "eagle2", "frspec", "draft_lm_chain"),
        shape=TreeShape(3, 4, 8),
        max_tokens=12,
        dtype="float32",
        num_threads=1,
        repetitions=1,
        kv_capacity_tokens=1024,
        vocabulary_file=ids,
        vocabulary_size=NUM_FREQUENT,
        draft_lm=str(PAIR / "target"),
    )

    async with open_contest(settings, byte_level_tokenizer()) as contest:
        results = await contest.run([Question("1", ("a b",))], lambda: None)

    ((plain,),), ((eagle2,),), ((frspec,),), ((chain,),) = results.outputs.values()
    assert plain.token_ids == eagle2.token_ids == frspec.token_ids == chain.token_ids
    assert all(one.accepted_count == 3 for one in chain.rounds[:-1])
    assert drafted(plain) == set()
    assert drafted(frspec) < set(range(NUM_FREQUENT))
    assert drafted(eagle2) - set(range(NUM_FREQUENT))
    assert all(one.speculated for one in frspec.rounds)


def drafted(output: Output) -> set[int]:
    """Returns every token that was ever proposed."""
    return {token for one in output.rounds for token in one.tree.tokens}
