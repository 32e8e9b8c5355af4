"""Processors: transformers' where it has them, and each node sees its own path."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from arborist.core.errors import InvalidArgumentError
from arborist.core.logprobs import TokenLogprobs, token_logprobs
from arborist.core.processors import LogitProcessors, make_processors
from arborist.core.sampling import SamplingParams
from arborist.core.token_history import TokenHistory
from arborist.core.tree import node_paths

VOCAB_SIZE = 24
END = (3, 7)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

biases = st.dictionaries(st.integers(0, VOCAB_SIZE - 1), st.floats(-100, 100), max_size=6).map(
    lambda bias: tuple(sorted(bias.items()))
)
processed = st.builds(
    SamplingParams,
    logit_bias=biases,
    repetition_penalty=st.one_of(st.just(1.0), st.floats(0.01, 2.0)),
    presence_penalty=st.one_of(st.just(0.0), st.floats(-2.0, 2.0)),
    frequency_penalty=st.one_of(st.just(0.0), st.floats(-2.0, 2.0)),
    min_tokens=st.integers(0, 12),
)


def random_tree(random: Random, num_nodes: int) -> tuple[list[int], list[int]]:
    """Tokens and parents of any tree; siblings may be equal."""
    tokens = [random.randrange(VOCAB_SIZE) for _ in range(num_nodes)]
    return tokens, [random.randrange(node + 1) for node in range(num_nodes)]


def random_logits(rows: int, seed: int) -> torch.Tensor:
    """Logits of both signs."""
    return 3.0 * torch.randn(rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))


def of_transformers(params: SamplingParams, prompt_length: int, device: str) -> LogitsProcessorList:
    """What `generate` builds for the same parameters, in its order."""
    made = LogitsProcessorList()
    if params.logit_bias:
        bias = {(token,): value for token, value in params.logit_bias}
        made.append(SequenceBiasLogitsProcessor(sequence_bias=bias))
    if params.repetition_penalty != 1.0:
        made.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.min_tokens:
        made.append(
            MinNewTokensLengthLogitsProcessor(
                prompt_length, params.min_tokens, list(END), device=device
            )
        )
    return made


def expected_row(
    params: SamplingParams, prompt: list[int], output: list[int], logits: torch.Tensor
) -> torch.Tensor:
    """One row the slow way: transformers' processors, OpenAI's penalties token by token."""
    before = LogitsProcessorList()
    after = LogitsProcessorList()
    for one in of_transformers(params, len(prompt), str(logits.device)):
        late = isinstance(one, MinNewTokensLengthLogitsProcessor)
        (after if late else before).append(one)
    ids = torch.tensor([[*prompt, *output]], device=logits.device)
    row = before(ids, logits[None].clone())
    for token, count in Counter(output).items():
        row[0, token] -= params.presence_penalty
        row[0, token] -= count * params.frequency_penalty
    return after(ids, row)[0]


@pytest.mark.parametrize("device", DEVICES)
@given(processed, st.integers(0, 10_000))
@settings(max_examples=120, deadline=None)
def test_every_node_is_processed_along_its_own_path(
    device: str, params: SamplingParams, seed: int
) -> None:
    """A node's logits are those of plain decoding after prompt, committed tokens and its path."""
    random = Random(seed)
    prompt = [random.randrange(VOCAB_SIZE) for _ in range(random.randrange(1, 9))]
    committed = [random.randrange(VOCAB_SIZE) for _ in range(random.randrange(9))]
    tokens, parents = random_tree(random, random.randrange(12))
    paths = node_paths(random.randrange(VOCAB_SIZE), tokens, parents)
    logits = random_logits(len(paths), seed).to(device)
    raw = logits.clone()
    processors = LogitProcessors(params, len(prompt), END)
    known = prompt + committed
    while known:  # However the tokens came: as a chunk of the prompt, or round by round.
        size = random.randrange(1, 6)
        processors.append(known[:size])
        known = known[size:]

    positions = [len(prompt) + len(committed) + len(path) for path in paths]
    got = processors.apply(logits, paths, positions)

    expected = [
        expected_row(params, prompt, [*committed, *path], raw[row])
        for row, path in enumerate(paths)
    ]
    torch.testing.assert_close(got, torch.stack(expected))
    assert torch.equal(logits, raw)


def test_penalties_off_leave_no_processors() -> None:
    """What is off costs nothing, whatever else the parameters say."""
    plain = SamplingParams(0.7, top_k=5, top_p=0.9, min_p=0.1, seed=3)
    assert make_processors(plain, 0, END) is None
    for change in (
        {"logit_bias": ((1, 2.0),)},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"min_tokens": 1},
    ):
        options: dict[str, Any] = change
        assert make_processors(SamplingParams(**options), 4, END) is not None


def test_min_tokens_that_are_there_cost_nothing() -> None:
    """Past them the logits go on untouched; before them only the end tokens change."""
    processors = LogitProcessors(SamplingParams(min_tokens=3), 4, END)
    logits = random_logits(2, 1)

    assert processors.apply(logits, [(1,), (1, 2)], [7, 8]) is logits
    held = processors.apply(logits, [(1,), (1, 2)], [6, 7])
    assert held[0].isinf().nonzero().flatten().tolist() == list(END)
    assert torch.equal(held[1], logits[1])


def test_a_bias_alone_needs_no_prompt_length() -> None:
    """Whoever counts tokens must know where the output begins; a bias counts nothing."""
    assert make_processors(SamplingParams(logit_bias=((1, 2.0),)), 0, ()) is not None
    for params in (SamplingParams(min_tokens=1), SamplingParams(repetition_penalty=1.2)):
        with pytest.raises(InvalidArgumentError, match=r"^prompt_length = 0"):
            make_processors(params, 0, ())


def test_a_prompt_is_no_output_when_it_comes_in_one_chunk_with_output() -> None:
    """Tokens prefilled again after a loss count by their places, not by their chunk."""
    params = SamplingParams(presence_penalty=1.0, frequency_penalty=0.5)
    processors = LogitProcessors(params, 2, ())
    processors.append([5, 6, 6, 7])

    (row,) = processors.apply(torch.zeros(1, 10), [(6,)], [5]).tolist()

    assert row == [0.0] * 6 + [-2.0, -1.5, 0.0, 0.0]


def test_counting_paths_leaves_the_history_alone() -> None:
    """A tree that was refused leaves no trace; the same question gets the same answer."""
    history = TokenHistory(1)
    history.append([4, 9])
    first = history.counts([(9, 2), (4,)])
    again = history.counts([(9, 2), (4,)])

    for counts in (first, again):
        assert counts.token_ids.tolist() == [4, 9]
        assert counts.num_output.tolist() == [0, 1]
        assert counts.path_rows.tolist() == [0, 0, 1]
        assert counts.path_token_ids.tolist() == [9, 2, 4]
        assert counts.path_num_output.tolist() == [2, 1, 1]
    assert len(history) == 2


def test_counts_of_the_history_are_taken_once_for_all_rows() -> None:
    """What is counted grows with prompt plus paths, not with prompt times rows."""
    history = TokenHistory(300)
    history.append(range(300))

    counts = history.counts([(7, row) for row in range(50)])

    assert counts.num_output.size == 300
    assert counts.path_num_output.size == 99  # Row 7 has its token twice.


@pytest.mark.parametrize("repetition", [1.0, 1.3])
@pytest.mark.parametrize(("presence", "frequency"), [(0.0, 0.0), (0.7, 0.0), (-0.4, 0.3)])
def test_penalties_are_to_the_last_bit_those_of_one_token_after_the_other(
    repetition: float, presence: float, frequency: float
) -> None:
    """Sharing the history's counts between rows rounds nothing differently."""
    random = Random(7)
    prompt = [random.randrange(VOCAB_SIZE) for _ in range(90)]
    output = [random.randrange(VOCAB_SIZE // 2) for _ in range(9)]
    paths = node_paths(5, *random_tree(random, 30))
    logits = random_logits(len(paths), 11)
    params = SamplingParams(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency
    )
    processors = LogitProcessors(params, len(prompt), ())
    processors.append([*prompt, *output])

    got = processors.apply(logits, paths, [len(prompt) + len(output) + len(p) for p in paths])

    for row, path in enumerate(paths):
        said = Counter([*output, *path])
        for token in range(VOCAB_SIZE):
            value = logits[row, token]
            if repetition != 1.0 and token in {*prompt, *said}:
                value = value * repetition if value < 0 else value / repetition
            if said[token]:
                value = value - presence
                value = value - torch.tensor(float(said[token])) * frequency
            assert got[row, token] == value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 2.01),
        ("repetition_penalty", float("nan")),
        ("presence_penalty", -2.01),
        ("presence_penalty", float("inf")),
        ("frequency_penalty", 2.01),
        ("frequency_penalty", float("nan")),
        ("min_tokens", -1),
        ("min_tokens", 2**31),
        ("logit_bias", tuple((token, 0.0) for token in range(301))),
        ("logit_bias", ((2, 1.0), (2, 2.0))),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((1, 100.5),)),
        ("logit_bias", ((1, float("nan")),)),
    ],
)
def test_processors_outside_their_range_are_refused(field: str, value: object) -> None:
    """The message names the field and its limit."""
    fields: dict[str, Any] = {field: value}
    with pytest.raises(InvalidArgumentError, match=f"^{field}") as caught:
        SamplingParams(**fields)
    assert caught.value.metadata["limit"]


@pytest.mark.parametrize("device", DEVICES)
def test_logprobs_are_those_of_the_raw_softmax(device: str) -> None:
    """A token's own first, then the most probable, best first, in fp32 whatever the logits are."""
    logits = random_logits(3, 5).to(device, torch.bfloat16)
    tokens = [4, 0, 23]
    expected = logits.double().softmax(-1).log().cpu()

    got = token_logprobs(logits, tokens, 5)

    for row, one in enumerate(got):
        assert one.token_id == tokens[row]
        assert one.logprob == pytest.approx(float(expected[row, tokens[row]]), abs=1e-5)
        order = expected[row].argsort(descending=True)[:5].tolist()
        assert [token for token, _ in one.top] == order
        values = [value for _, value in one.top]
        assert values == pytest.approx(expected[row, order].tolist(), abs=1e-5)


def test_logprobs_of_the_token_alone_and_of_a_small_vocabulary() -> None:
    """None listed when none is asked for, and never more than there are."""
    logits = torch.zeros(1, 4)
    own = TokenLogprobs(2, pytest.approx(-1.3862944))  # type: ignore[arg-type]
    assert token_logprobs(logits, [2], 0) == [own]
    assert len(token_logprobs(logits, [2], 20)[0].top) == 4
    assert token_logprobs(torch.tensor([[0.0, 200.0]]), [1], 0)[0].logprob == 0.0
