"""Noise-aware scores: the naive sum, the token that is drawn, and how often it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.unit.core.test_sampling import CPU, DEVICES, naive_noise, random_logits

from arborist.core.errors import InvalidArgumentError
from arborist.core.noise_aim import NoiseAim
from arborist.core.sampling import SamplingParams, draw_tokens, gumbel_noise, token_noise

VOCAB = 48


@pytest.mark.parametrize("device", DEVICES)
def test_noise_of_some_tokens_is_theirs_among_all(device: str) -> None:
    """A draft vocabulary in any order has the noise that the target's ids have."""
    ids = torch.tensor([[40, 3], [0, 299]], device=device)
    everyone = gumbel_noise(2**63 + 9, 17, 300, CPU)
    assert torch.equal(token_noise(2**63 + 9, 17, ids).cpu(), everyone[ids.cpu()])


@pytest.mark.parametrize(("seed", "position", "temperature"), [(0, 1, 0.7), (2**64 - 1, 90, 1.5)])
def test_aimed_logits_are_the_naive_sum(seed: int, position: int, temperature: float) -> None:
    """Raw logit + temperature times noise of the target's id, number by number."""
    ids = [7, 2, 900, 31]
    logits = random_logits(3, len(ids), 1)
    aimed = NoiseAim(seed, temperature).aimed(logits, position, torch.tensor(ids))
    for row in range(3):
        for column, token in enumerate(ids):
            expected = float(logits[row, column]) + temperature * naive_noise(seed, position, token)
            assert float(aimed[row, column]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_draft_with_the_targets_logits_puts_the_drawn_token_first(temperature: float) -> None:
    """What the target draws at a position is the best child there, for every seed."""
    ids = torch.arange(VOCAB)
    for seed in range(40):
        logits, position = random_logits(4, VOCAB, seed), 3 * seed
        params = SamplingParams(temperature=temperature, seed=seed)
        drawn, _ = draw_tokens(logits, [position] * 4, params)
        aimed = NoiseAim(seed, temperature).aimed(logits, position, ids)
        assert aimed.argmax(-1).tolist() == drawn


def test_scores_are_how_often_each_token_is_drawn() -> None:
    """With errors of Gumbel scale 1 in the draft's logits, the softmax is the frequency."""
    aim, trials = NoiseAim(5, 0.8), 40_000
    draft = random_logits(1, 6, 2)
    chance = aim.aimed(draft, 11, torch.arange(6)).softmax(-1)[0].double().numpy()
    errors = np.random.default_rng(3).gumbel(size=(trials, 6))
    noise = gumbel_noise(5, 11, 6, CPU).numpy()
    drawn = ((draft.double().numpy() + errors) / 0.8 + noise).argmax(-1)
    share = np.bincount(drawn, minlength=6) / trials
    assert np.all(np.abs(share - chance) <= 5 * np.sqrt(chance * (1 - chance) / trials) + 1e-4)


@pytest.mark.parametrize("temperature", [0.0, 9e-7, -1.0, 100.5, math.nan, math.inf])
def test_a_temperature_without_noise_is_refused(temperature: float) -> None:
    """The message names field, value and limit."""
    with pytest.raises(InvalidArgumentError, match=r"noise_temperature = .*in \[1e-06, 100\]"):
        NoiseAim(1, temperature)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_over_64_bits_is_refused(seed: int) -> None:
    """The message names field, value and limit."""
    with pytest.raises(InvalidArgumentError, match=r"noise_seed = .*unsigned 64-bit"):
        NoiseAim(seed, 1.0)
