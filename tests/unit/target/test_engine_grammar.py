"""Constrained output at the engine: plain decoding's tokens, whatever the tree; JSON that fits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.api.tokenizers import byte_level_tokenizer
from tests.unit.target.conftest import save
from tests.unit.target.conftest import settings as sizes
from tests.unit.target.sessions import (
    STATES,
    Decoder,
    TinyModel,
    draft_tree,
    failed,
    prefilled,
    run_one,
    verified,
)
from transformers import LlamaConfig

from arborist.core.engine import Prefill, TargetOpen, Verify
from arborist.core.errors import InvalidArgumentError
from arborist.core.prefix import Prefix
from arborist.core.sampling import SamplingParams
from arborist.orchestrator.api.tokenizer import Tokenizer
from arborist.target.engine import HfTargetEngine, load_target

END = 0
LIMIT = 60
OBJECT = '{"type": "object"}'
TOKENIZER = byte_level_tokenizer()

leaves = st.sampled_from(
    [
        {"type": "boolean"},
        {"type": "null"},
        {"type": "integer", "minimum": -5, "maximum": 120},
        {"enum": ["ab", "abc", 1, None]},
        {"const": "end"},
        {"type": "string", "maxLength": 2},
        {"type": "string", "pattern": "^(a|bc)*d$", "maxLength": 3},
    ]
)


def around(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Arrays, objects and choices of smaller schemas."""
    arrays = st.builds(lambda item: {"type": "array", "items": item, "maxItems": 2}, inner)
    choices = st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner)
    objects = st.builds(
        lambda parts, needed: {
            "type": "object",
            "properties": parts,
            "required": [name for name in parts if name in needed],
            "additionalProperties": False,
        },
        st.dictionaries(st.sampled_from(["a", "abc", "end"]), inner, min_size=1, max_size=2),
        st.sets(st.sampled_from(["a", "abc", "end"])),
    )
    return st.one_of(arrays, choices, objects)


schemas = st.one_of(leaves, around(leaves))
samplings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.7, 1.5]),
    top_p=st.sampled_from([1.0, 0.9]),
    seed=st.integers(0, 2**64 - 1),
    logit_bias=st.sampled_from([(), ((12, 20.0), (40, -100.0))]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    min_tokens=st.sampled_from([0, 0, 5, LIMIT]),
)


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A random model with a tokenizer that knows fewer ids than the model has logits."""
    folder = tmp_path_factory.mktemp("speaking")
    size = len(TOKENIZER._backend) + 7
    more = sizes(vocab_size=size, eos_token_id=END, bos_token_id=1, max_position_embeddings=256)
    model = save(folder, LlamaConfig(**more))
    TOKENIZER._backend.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def engine(speaking: TinyModel) -> Iterator[HfTargetEngine]:
    """It loads nothing for grammars until the first schema comes."""
    engine = load_target(
        speaking.folder,
        device="cpu",
        dtype="float32",
        kv_capacity_tokens=4096,
        prefix_cache_tokens=512,
    )
    assert engine._grammars is not None
    assert engine._grammars._ready is None
    yield engine
    if engine._grammars._ready is not None:
        engine._grammars._ready.trial.close()


def until_the_end(decoder: Decoder) -> list[int]:
    """Decodes without trees to the end token, or LIMIT tokens."""
    while END not in decoder.output and len(decoder.output) < LIMIT:
        decoder.round([], [])
    return decoder.output


def check(output: list[int], schema: dict[str, Any], tokenizer: Tokenizer = TOKENIZER) -> bool:
    """Checks an output; returns whether it came to its end."""
    if output[-1] != END:
        return False
    jsonschema.validate(json.loads(tokenizer.decode(output)), schema)
    return True


@given(schema=schemas, sampling=samplings, seed=st.integers(0, 1000))
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_random_trees_never_change_a_constrained_output(
    speaking: TinyModel,
    engine: HfTargetEngine,
    schema: dict[str, Any],
    sampling: SamplingParams,
    seed: int,
) -> None:
    """Greedy and seeded, with processors: the tokens of plain decoding, which fit the schema."""
    random, prompt, text = Random(seed), speaking.prompt(seed, 9), json.dumps(schema)
    options: dict[str, Any] = {"sampling": sampling, "end_token_ids": (END,), "json_schema": text}
    truth = until_the_end(Decoder(engine, prompt, "plain", **options))
    decoder = Decoder(engine, prompt, "trees", chunk=4, **options)

    while len(decoder.output) < len(truth):
        done = len(decoder.output)
        # Also right tokens below wrong ones, and nodes behind the end.
        tree = draft_tree(random, random.randrange(20), speaking.vocab_size, truth[done:])
        decoder.round(*tree)
        engine.check_integrity()

    # Of the round that ended the output only what is behind its end does not count.
    assert decoder.output[: len(truth)] == truth
    check(truth, schema)


def test_outputs_come_to_their_end_and_fit(speaking: TinyModel, engine: HfTargetEngine) -> None:
    """Most random outputs are whole documents; those cut short are beginnings of some."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["x"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    ended = 0
    for seed in range(12):
        sampling = SamplingParams(temperature=1.0, seed=seed)
        decoder = Decoder(
            engine, speaking.prompt(seed, 5), sampling=sampling, json_schema=json.dumps(schema)
        )
        ended += check(until_the_end(decoder), schema)
    assert ended >= 6


def test_right_drafts_are_accepted_to_the_end(speaking: TinyModel, engine: HfTargetEngine) -> None:
    """A chain of the very output, end token included, costs one round."""
    schema = json.dumps({"enum": ["abcabc", "end"]})
    prompt = speaking.prompt(1, 9)
    truth = until_the_end(Decoder(engine, prompt, "plain", json_schema=schema))
    decoder = Decoder(engine, prompt, "chain", json_schema=schema)

    result = decoder.round(truth[1:], list(range(len(truth) - 1)))

    assert len(result.accepted_nodes) == len(truth) - 1
    assert decoder.output[: len(truth)] == truth
    assert truth[-1] == END


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("lost_after", [1, 3, 7])
def test_a_rebuilt_session_goes_on_as_before(
    speaking: TinyModel, engine: HfTargetEngine, lost_after: int, temperature: float
) -> None:
    """Committed tokens prefilled again bring the grammar to where it was."""
    schema = json.dumps({"type": "array", "items": {"type": "integer"}, "minItems": 4})
    sampling = SamplingParams(temperature=temperature, seed=5)
    prompt = speaking.prompt(2, 9)
    truth = until_the_end(Decoder(engine, prompt, "plain", sampling=sampling, json_schema=schema))
    log = prompt + truth[:lost_after]
    key = ("controller", "again")
    engine.open(key, TargetOpen(sampling, None, 100, 20, len(prompt), (), json_schema=schema))

    run_one(engine, Prefill(key, 0, log[:6], last=False))
    run_one(engine, Prefill(key, 6, log[6:-1], last=False))
    while len(log) < len(prompt) + len(truth):
        log.append(verified(run_one(engine, Verify(key, len(log), log[-1], [], []))).bonus)
        engine.check_integrity()

    assert log[len(prompt) :] == truth


@pytest.mark.parametrize("known", [0, 6])
def test_tokens_taken_over_count_like_computed_ones(
    speaking: TinyModel, engine: HfTargetEngine, known: int
) -> None:
    """Prompt alone, or committed output too: the grammar goes on where it must."""
    schema = json.dumps({"type": "array", "items": {"type": "integer"}, "minItems": 4})
    sampling = SamplingParams(temperature=1.0, seed=8)
    prompt = speaking.prompt(20 + known, 40)
    scope = f"tenant {known}"
    first = Decoder(engine, prompt, "first", sampling=sampling, json_schema=schema, scope=scope)
    truth = until_the_end(first)
    engine.keep(first.key)
    engine.release(first.key)

    log, key = prompt + truth[:known], ("controller", "again")
    prefix = Prefix.of(scope, log[:-1])
    engine.open(
        key,
        TargetOpen(sampling, STATES, 110, 20, len(prompt), (), prefix=prefix, json_schema=schema),
    )
    reused = engine.num_reused(key)
    rest = log[reused:] if known == 0 else log[reused:-1]
    assert reused > 20
    if rest:
        outcome = prefilled(run_one(engine, Prefill(key, reused, rest, last=known == 0)))
        log += [] if outcome.root is None else [outcome.root]
    while len(log) < len(prompt) + len(truth):
        log.append(verified(run_one(engine, Verify(key, len(log), log[-1], [], []))).bonus)
        engine.check_integrity()

    assert log[len(prompt) :] == truth


def test_sessions_of_one_batch_keep_their_own_grammars(
    speaking: TinyModel, engine: HfTargetEngine
) -> None:
    """The same schema twice, another and none, in one forward: what each gets alone."""
    prompt = speaking.prompt(3, 9)
    one, other = json.dumps({"enum": [True, 17]}), json.dumps({"type": "array"})
    kinds = [one, other, None, one]
    alone = [
        Decoder(engine, prompt, f"alone {index}", json_schema=schema).output
        + Decoder(engine, prompt, f"alone {index}", json_schema=schema).plain(3)[1:]
        for index, schema in enumerate(kinds)
    ]
    together = [
        Decoder(engine, prompt, f"batch {index}", json_schema=schema)
        for index, schema in enumerate(kinds)
    ]
    for _ in range(2):
        works = [decoder.work([], []) for decoder in together]
        for decoder, work, outcome in zip(together, works, engine.run(works), strict=True):
            decoder.commit(work, outcome)

    assert [decoder.output for decoder in together] == alone
    assert engine._sessions[("controller", "alone 2")].processors is None


def test_a_forbidden_root_fails_its_session_alone(
    speaking: TinyModel, engine: HfTargetEngine
) -> None:
    """A controller that says the output was something else gets an error."""
    schema = json.dumps({"const": "end"})
    bad = Decoder(engine, speaking.prompt(4, 9), "bad", json_schema=schema)
    good = Decoder(engine, speaking.prompt(4, 9), "good", json_schema=schema)
    wrong = Verify(bad.key, len(bad.log), TOKENIZER.encode("{")[0], [], [])

    outcome, other = engine.run([wrong, good.work([], [])])

    assert "committed token" in failed(outcome).message
    verified(other)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"not": {"type": "string"}}, "Unimplemented keys"),
        ({"type": "nope"}, "Invalid type: nope"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "Unsatisfiable"),
        ({"$ref": "http://example.com/other.json"}, "not present"),
        ({"type": "string", "pattern": "("}, ""),
        ({"$ref": "#"}, "NoExtension"),
    ],
)
def test_a_schema_that_cannot_be_compiled_is_refused(
    engine: HfTargetEngine, schema: dict[str, Any], reason: str
) -> None:
    """With the library's reason in one line; nothing is reserved, again and again."""
    reserved = engine.kv_reserved_tokens
    request = TargetOpen(SamplingParams(), None, 40, 4, 3, json_schema=json.dumps(schema))
    for refuse in (lambda: engine.prepare(request), lambda: engine.open(("c", "s"), request)):
        with pytest.raises(InvalidArgumentError) as caught:
            refuse()
        assert caught.value.metadata["field"] == "response_format"
        assert reason in caught.value.message
        assert "\n" not in caught.value.message
        assert len(caught.value.message) < 400
    assert engine.kv_reserved_tokens == reserved


def test_a_target_without_tokenizer_says_so(llama: TinyModel) -> None:
    """By the field's name, before anything is reserved."""
    engine = load_target(llama.folder, device="cpu", dtype="float32", kv_capacity_tokens=128)
    request = TargetOpen(SamplingParams(), None, 40, 4, 3, json_schema=OBJECT)
    with pytest.raises(InvalidArgumentError, match=r"response_format.*no tokenizer"):
        engine.prepare(request)
    with pytest.raises(InvalidArgumentError, match=r"response_format.*no tokenizer"):
        engine.open(("c", "s"), request)
    assert engine.kv_reserved_tokens == 0
