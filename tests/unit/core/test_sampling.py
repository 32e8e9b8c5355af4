"""Sampling: the processors are transformers', the noise is a function of its inputs alone."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from arborist.core.errors import InvalidArgumentError
from arborist.core.sampling import (
    SamplingParams,
    choice_seed,
    draw_tokens,
    gumbel_noise,
    process_logits,
)

CPU = torch.device("cpu")
MASK_64 = (1 << 64) - 1
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def random_logits(rows: int, vocab_size: int, seed: int) -> torch.Tensor:
    """Logits as peaked as a language model's."""
    generator = torch.Generator().manual_seed(seed)
    return 3.0 * torch.randn(rows, vocab_size, generator=generator)


def warpers(params: SamplingParams) -> LogitsProcessorList:
    """What `generate` builds for the same parameters, in its order."""
    made = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        made.append(TopKLogitsWarper(top_k=params.top_k))
    if params.top_p < 1.0:
        made.append(TopPLogitsWarper(top_p=params.top_p))
    if params.min_p > 0.0:
        made.append(MinPLogitsWarper(min_p=params.min_p))
    return made


@given(
    st.builds(
        SamplingParams,
        temperature=st.floats(0.05, 5.0),
        top_k=st.integers(0, 60),
        top_p=st.one_of(st.just(1.0), st.floats(0.01, 1.0)),
        min_p=st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
    ),
    st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_processors_equal_transformers(params: SamplingParams, seed: int) -> None:
    """Temperature, top_k, top_p and min_p keep the same tokens with the same scores."""
    logits = random_logits(3, 48, seed)
    expected = warpers(params)(torch.zeros(3, 1, dtype=torch.long), logits.clone())
    torch.testing.assert_close(process_logits(logits, params), expected)


def test_tied_logits_are_kept_together_by_top_k() -> None:
    """A tie at the cut keeps both, as transformers does."""
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    kept = process_logits(logits, SamplingParams(temperature=1.0, top_k=1)).isfinite()
    assert kept.tolist() == [[False, True, True, False]]


def naive_noise(seed: int, position: int, token: int) -> float:
    """The hash with Python's unbounded integers, and the logarithms of one number."""

    def mix(value: int) -> int:
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK_64
        return value ^ (value >> 31)

    golden = 0x9E3779B97F4A7C15
    key = mix((seed + (position + 1) * golden) & MASK_64)
    bits = mix(((token + 1) * golden + key) & MASK_64)
    return -math.log(-math.log(((bits >> 11) + 0.5) / 2**53))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_noise_is_the_same_hash_everywhere(seed: int, device: str) -> None:
    """Every device gives what unbounded integers give, for seeds of all 64 bits."""
    noise = gumbel_noise(seed, 17, 300, torch.device(device)).cpu()
    expected = [naive_noise(seed, 17, token) for token in range(300)]
    np.testing.assert_allclose(noise.numpy(), expected, rtol=1e-12)


def test_noise_never_changes_between_versions() -> None:
    """Recorded values: a seed reproduces an output for as long as these hold."""
    recorded = {
        (0, 0): -0.06688648963940354,
        (5, 7): -0.2541637475959291,
        (900, 3): 0.18072463530169763,
    }
    for (position, token), value in recorded.items():
        noise = gumbel_noise(42, position, token + 1, CPU)
        assert float(noise[token]) == pytest.approx(value, rel=1e-12)


def test_noise_is_the_same_for_the_same_inputs_only() -> None:
    """Repeating gives the same noise; another seed or position gives another."""
    noise = gumbel_noise(3, 5, 64, CPU)
    assert torch.equal(noise, gumbel_noise(3, 5, 64, CPU))
    assert torch.equal(noise, gumbel_noise(3, 5, 128, CPU)[:64])
    for other in (gumbel_noise(4, 5, 64, CPU), gumbel_noise(3, 6, 64, CPU)):
        assert not torch.isclose(noise, other).any()


def test_noise_is_standard_gumbel() -> None:
    """Uniform after undoing the logarithms, over tokens, positions and seeds."""
    samples = torch.stack([gumbel_noise(seed, 11 * seed, 2000, CPU) for seed in range(50)])
    assert samples.isfinite().all()
    uniform = torch.exp(-torch.exp(-samples)).numpy()
    assert stats.kstest(uniform.ravel(), "uniform").pvalue > 1e-3
    along_positions = np.array(
        [float(gumbel_noise(9, position, 1, CPU)[0]) for position in range(5000)]
    )
    assert stats.kstest(np.exp(-np.exp(-along_positions)), "uniform").pvalue > 1e-3


def test_noise_of_neighbours_is_uncorrelated() -> None:
    """Neighbouring positions, tokens and seeds tell nothing about each other."""
    count = 20_000
    base = gumbel_noise(1, 1, count, CPU).numpy()
    neighbours = {
        "position": gumbel_noise(1, 2, count, CPU).numpy(),
        "seed": gumbel_noise(2, 1, count, CPU).numpy(),
        "token": np.roll(base, 1),
    }
    for name, other in neighbours.items():
        assert abs(np.corrcoef(base, other)[0, 1]) < 4 / math.sqrt(count), name


def test_draws_follow_the_softmax() -> None:
    """Gumbel-max over positions is a draw from the processed distribution."""
    logits = random_logits(1, 12, 4)
    params = SamplingParams(temperature=1.7, top_k=8, seed=123)
    count = 20_000
    tokens, _ = draw_tokens(logits.expand(count, -1), list(range(count)), params)
    probs = process_logits(logits, params).double().softmax(-1)[0].numpy()
    observed = np.bincount(tokens, minlength=12)
    assert (observed[probs == 0] == 0).all()
    kept = probs > 0
    assert stats.chisquare(observed[kept], probs[kept] * count).pvalue > 1e-3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_token_does_not_depend_on_the_batch(temperature: float, device: str) -> None:
    """A row gives the same token alone, in a batch, and in another order."""
    params = SamplingParams(temperature=temperature, top_p=0.9, seed=77)
    logits = random_logits(6, 50, 8).to(device)
    positions = [3, 3, 4, 4, 5, 9]
    together, margins = draw_tokens(logits, positions, params)
    backwards, _ = draw_tokens(logits.flip(0), positions[::-1], params)
    alone = [draw_tokens(logits[i : i + 1], [positions[i]], params)[0][0] for i in range(6)]
    assert together == alone == backwards[::-1]
    assert all(margin >= 0 for margin in margins)


def test_nodes_of_one_depth_share_their_noise() -> None:
    """Equal logits at equal positions draw the same token, at different ones mostly not."""
    params = SamplingParams(temperature=1.0, seed=5)
    logits = torch.zeros(40, 1000)
    shared, _ = draw_tokens(logits, [7] * 40, params)
    apart, _ = draw_tokens(logits, list(range(40)), params)
    assert len(set(shared)) == 1
    assert len(set(apart)) > 30


def test_greedy_is_the_argmax_and_its_margin() -> None:
    """Temperature 0 ignores the seed and reports the gap of the two best logits."""
    logits = torch.tensor([[0.5, 3.0, 1.0], [4.0, -1.0, 3.75]])
    for seed in (0, 99):
        tokens, margins = draw_tokens(logits, [1, 2], SamplingParams(seed=seed))
        assert tokens == [1, 0]
        assert margins == [2.0, 0.25]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_row_without_a_finite_best_logit_is_an_error(temperature: float, bad: float) -> None:
    """NaN, or nothing allowed at all, is never turned into a token."""
    with pytest.raises(ValueError, match="not finite"):
        draw_tokens(torch.full((1, 5), bad), [0], SamplingParams(temperature=temperature))


def test_choices_have_seeds_of_their_own() -> None:
    """Choice 0 is the seed itself; the others differ from it, from each other, and in 64 bits."""
    seeds = [choice_seed(seed, choice) for seed in (0, 1, MASK_64) for choice in range(50)]
    assert choice_seed(MASK_64, 0) == MASK_64
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed <= MASK_64 for seed in seeds)
    assert all(bin(one ^ other).count("1") > 8 for one, other in pairwise(seeds[1:50]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 9e-7),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 100.5),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("min_p", -0.01),
        ("min_p", 1.5),
        ("min_p", math.nan),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_parameters_outside_their_range_are_refused(field: str, value: float) -> None:
    """The message names the field and the value."""
    fields: dict[str, Any] = {field: value}
    with pytest.raises(InvalidArgumentError, match=f"^{field} = ") as caught:
        SamplingParams(**fields)
    assert caught.value.metadata["value"] == str(value)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_of_equal_logits_the_smallest_id_is_drawn(dtype: torch.dtype, device: str) -> None:
    """As `argmax` and transformers' `generate` choose, however many rows are drawn at once."""
    logits = random_logits(16, 4096, 5).to(dtype)
    pairs = [(7 * row, 4095 - 11 * row) for row in range(16)]
    for row, pair in enumerate(pairs):
        logits[row, list(pair)] = 100.0
    logits = logits.to(device)

    tokens, margins = draw_tokens(logits, list(range(16)), SamplingParams())

    assert tokens == [first for first, _ in pairs]
    assert margins == [0.0] * 16
    assert draw_tokens(logits[3:4], [3], SamplingParams())[0] == tokens[3:4]
