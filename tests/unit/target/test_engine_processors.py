"""Penalties, bias and log-probs at the engine: what plain decoding gives, whatever the tree."""

from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.target.conftest import MakeEngine
from tests.unit.target.sessions import (
    GREEDY,
    Decoder,
    TinyModel,
    draft_tree,
    failed,
    run_one,
    verified,
)

from arborist.core.engine import Prefill, TargetOpen, Verify
from arborist.core.errors import ArboristError, InvalidArgumentError
from arborist.core.sampling import SamplingParams
from arborist.target.engine import HfTargetEngine

pytestmark = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)]
)

ALL = SamplingParams(
    temperature=0.8,
    top_p=0.95,
    seed=77,
    logit_bias=((4, 3.0), (9, -100.0)),
    repetition_penalty=1.3,
    presence_penalty=0.7,
    frequency_penalty=0.4,
    min_tokens=12,
)


def generate(
    tiny: TinyModel, prompt: list[int], length: int, device: str, **options: object
) -> list[int]:
    """Lets transformers generate greedily."""
    model = tiny.reference(device)
    ids = torch.tensor([prompt], device=device)
    output = model.generate(
        ids,
        max_new_tokens=length,
        do_sample=False,
        attention_mask=torch.ones_like(ids),
        **options,
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("penalty", [0.8, 1.4])
@pytest.mark.parametrize("seed", range(3))
def test_output_equals_transformers_generate(
    tiny: TinyModel, make_engine: MakeEngine, device: str, seed: int, penalty: float
) -> None:
    """Bias, repetition penalty and min_tokens together, up to the first end token."""
    prompt = tiny.prompt(seed, 11)
    bias = {3: 4.0, 17: -6.0, 40: 2.5}
    model = {"repetition_penalty": penalty, "sequence_bias": {(t,): v for t, v in bias.items()}}
    free = generate(tiny, prompt, 20, device, eos_token_id=None, **model)
    ends = sorted({free[1], free[3]})  # Which end the output unless they are held back.
    expected = generate(
        tiny, prompt, 30, device, min_new_tokens=9, eos_token_id=ends, pad_token_id=0, **model
    )
    sampling = SamplingParams(
        logit_bias=tuple(sorted(bias.items())), repetition_penalty=penalty, min_tokens=9
    )

    decoder = Decoder(make_engine(tiny), prompt, sampling=sampling, end_token_ids=tuple(ends))
    output = decoder.plain(len(expected))

    assert output == expected
    assert not set(output[:9]) & set(ends)


@given(
    sampling=st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.7, 1.5]),
        top_k=st.sampled_from([0, 30]),
        seed=st.integers(0, 2**64 - 1),
        logit_bias=st.dictionaries(st.integers(0, 95), st.floats(-100, 10), max_size=4).map(
            lambda bias: tuple(sorted(bias.items()))
        ),
        repetition_penalty=st.floats(0.5, 2.0),
        presence_penalty=st.floats(-2.0, 2.0),
        frequency_penalty=st.floats(-2.0, 2.0),
        min_tokens=st.integers(0, 20),
    ),
    seed=st.integers(0, 1000),
)
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_random_trees_never_change_the_output(
    llama: TinyModel,
    make_engine: MakeEngine,
    device: str,
    sampling: SamplingParams,
    seed: int,
) -> None:
    """Whatever the parameters, rounds with trees commit what rounds without trees commit."""
    engine, random = make_engine(llama), Random(seed)
    prompt, ends = llama.prompt(seed, 9), (5, 6, 7)
    plain = Decoder(engine, prompt, "plain", sampling=sampling, end_token_ids=ends)
    truth = plain.plain(37)  # The last round may go 20 nodes past the end.
    decoder = Decoder(
        engine, prompt, "trees", sampling=sampling, end_token_ids=ends, chunk=4, num_logprobs=2
    )

    while len(decoder.output) < 16:
        done = len(decoder.output)
        tree = draft_tree(random, random.randrange(20), llama.vocab_size, truth[done:])
        decoder.round(*tree)
        engine.check_integrity()

    assert decoder.output == truth[: len(decoder.output)]
    assert [one.token_id for one in decoder.logprobs] == decoder.output


def test_speculation_really_accepts_under_penalties(
    tiny: TinyModel, make_engine: MakeEngine, device: str
) -> None:
    """A chain of the right tokens is accepted to its end."""
    engine, prompt = make_engine(tiny), tiny.prompt(1, 9)
    truth = Decoder(engine, prompt, "plain", sampling=ALL, end_token_ids=(5,)).plain(10)
    decoder = Decoder(engine, prompt, "chain", sampling=ALL, end_token_ids=(5,))

    result = decoder.round(truth[1:6], [0, 1, 2, 3, 4])

    assert result.accepted_nodes == (1, 2, 3, 4, 5)
    assert decoder.output == truth[:7]


@pytest.mark.parametrize("lost_after", [1, 5, 11])
def test_a_rebuilt_session_goes_on_as_before(
    tiny: TinyModel, make_engine: MakeEngine, device: str, lost_after: int
) -> None:
    """Committed tokens prefilled again with the prompt's length are output, not prompt."""
    engine, prompt = make_engine(tiny), tiny.prompt(2, 9)
    truth = Decoder(engine, prompt, "plain", sampling=ALL, end_token_ids=(5,)).plain(20)
    log = prompt + truth[:lost_after]
    other = make_engine(tiny)
    key = ("controller", "again")
    other.open(key, TargetOpen(ALL, None, 100, 20, len(prompt), (5,)))

    run_one(other, Prefill(key, 0, log[:-1], last=False))
    while len(log) < len(prompt) + 20:
        log.append(verified(run_one(other, Verify(key, len(log), log[-1], [], []))).bonus)
        other.check_integrity()

    assert log[len(prompt) :] == truth


def test_sessions_of_one_batch_keep_their_own_penalties(
    llama: TinyModel, make_engine: MakeEngine, device: str
) -> None:
    """A forward over plain, greedy and sampled sessions gives each what it gets alone."""
    engine, prompt = make_engine(llama), llama.prompt(3, 9)
    kinds = [GREEDY, ALL, replace(ALL, temperature=0.0, repetition_penalty=1.0), GREEDY]
    alone = [
        Decoder(engine, prompt, f"alone {index}", sampling=sampling, end_token_ids=(5,)).plain(12)
        for index, sampling in enumerate(kinds)
    ]
    together = [
        Decoder(engine, prompt, f"batch {index}", sampling=sampling, end_token_ids=(5,))
        for index, sampling in enumerate(kinds)
    ]

    while len(together[0].output) < 12:
        works = [one.work([], []) for one in together]
        for one, work, outcome in zip(together, works, engine.run(works), strict=True):
            one.commit(work, outcome)

    assert [one.output for one in together] == alone
    assert len({tuple(output) for output in alone}) == 3


@pytest.mark.parametrize("sampling", [GREEDY, ALL], ids=["greedy", "processed"])
def test_logprobs_are_the_models_own(
    tiny: TinyModel, make_engine: MakeEngine, device: str, sampling: SamplingParams
) -> None:
    """Prefill, accepted tokens and bonus: log_softmax of the raw logits, whatever was applied."""
    engine, prompt = make_engine(tiny), tiny.prompt(4, 9)
    truth = Decoder(engine, prompt, "plain", sampling=sampling).plain(8)
    decoder = Decoder(engine, prompt, "tree", sampling=sampling, num_logprobs=3)
    decoder.round([truth[1], truth[2], 11], [0, 1, 0])
    decoder.round([], [])

    log = torch.tensor([decoder.log], device=device)
    expected = tiny.reference(device)(log).logits[0].log_softmax(-1)
    assert len(decoder.logprobs) == len(decoder.output) >= 4
    for offset, one in enumerate(decoder.logprobs):
        row = expected[len(prompt) - 1 + offset]
        token = decoder.output[offset]
        assert one.token_id == token
        assert one.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [token for token, _ in one.top] == row.topk(3).indices.tolist()
        values = [value for _, value in one.top]
        assert values == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("prompt_length", {"prompt_length": -1}),
        ("prompt_length", {"prompt_length": 41}),
        ("prompt_length", {"sampling": SamplingParams(presence_penalty=1.0)}),
        ("logit_bias", {"sampling": SamplingParams(logit_bias=((96, 1.0),))}),
        ("end_token_ids", {"end_token_ids": (1, 96)}),
        ("end_token_ids", {"end_token_ids": (-1,)}),
    ],
)
def test_a_session_with_bad_processors_is_refused(
    llama: TinyModel, make_engine: MakeEngine, device: str, field: str, change: dict
) -> None:
    """Ids outside the vocabulary or no prompt length: nothing is reserved."""
    engine = make_engine(llama)
    request = replace(TargetOpen(GREEDY, None, 40, 4), **change)
    with pytest.raises(InvalidArgumentError) as caught:
        engine.open(("c", "s"), request)
    assert caught.value.metadata["field"] == field
    assert engine.kv_reserved_tokens == 0


def test_a_refused_command_is_not_counted(
    llama: TinyModel, make_engine: MakeEngine, device: str
) -> None:
    """A bad tree changes nothing that a penalty looks at."""
    engine, prompt = make_engine(llama), llama.prompt(5, 9)
    truth = Decoder(engine, prompt, "plain", sampling=ALL).plain(8)
    decoder = Decoder(engine, prompt, "s", sampling=ALL)

    failed(run_one(engine, decoder.work([3, 3], [0, 0])))

    engine.check_integrity()
    assert decoder.plain(8) == truth


def test_a_history_out_of_step_is_found(
    llama: TinyModel, make_engine: MakeEngine, device: str
) -> None:
    """check_integrity compares what is counted with the KV."""
    engine: HfTargetEngine = make_engine(llama)
    decoder = Decoder(engine, llama.prompt(6, 9), sampling=ALL)
    engine.check_integrity()
    processors = engine._sessions[decoder.key].processors
    assert processors is not None
    processors.append([1])
    with pytest.raises(ArboristError, match="counts 10 tokens, its KV length is 9"):
        engine.check_integrity()
