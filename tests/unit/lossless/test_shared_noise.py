"""How often a chain is accepted when draft and target draw with the same noise.

Classic speculative sampling accepts a drafted token with probability min(1, p/q): 1 − TV(p, q) of
them on average. Here both draw argmax(log-prob + noise) with the noise of (seed, position, token),
and a token is accepted iff it is the target's own. The rate then lies in
[(1 − TV)/(1 + TV), 1 − TV] and is known exactly: a token i is both winners' iff its noise beats
every other by max(p_j/p_i, q_j/q_i), so P = Σ_i 1/Σ_j max(p_j/p_i, q_j/q_i).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.unit.lossless.test_distribution import PREFIXES, TARGET, TableModel

from arborist.core.accept import accept
from arborist.core.noise_aim import NoiseAim
from arborist.core.sampling import SamplingParams, draw_tokens

# A correct rate is missed by more than this many standard deviations once in 150,000 checks.
SIGMAS = 4.5
NUM_DRAWS = 20_000
NUM_CHAINS = 20_000
PAIRS: dict[str, tuple[list[float], list[float]]] = {
    "equal": ([0.5, 0.3, 0.2], [0.5, 0.3, 0.2]),
    "near": ([0.5, 0.3, 0.15, 0.05], [0.45, 0.25, 0.2, 0.1]),
    "apart": ([0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]),
    "turned round": ([0.8, 0.15, 0.05], [0.05, 0.15, 0.8]),
    "sure against flat": ([0.97, 0.01, 0.01, 0.01], [0.25] * 4),
    "many": ([float(1 + i) for i in range(40)], [float(40 - i) for i in range(40)]),
}


def normal(weights: list[float]) -> np.ndarray:
    """Returns probabilities."""
    return np.asarray(weights, dtype=np.float64) / np.sum(weights)


def bounds(p: np.ndarray, q: np.ndarray) -> tuple[float, float]:
    """Returns the least and the largest acceptance rate of a pair."""
    tv = 0.5 * float(np.abs(p - q).sum())
    return (1 - tv) / (1 + tv), 1 - tv


def exact_rate(p: np.ndarray, q: np.ndarray) -> float:
    """Returns the chance that both draw the same token."""
    ratios = np.maximum(p[None, :] / p[:, None], q[None, :] / q[:, None])  # [i, j]
    return float((1 / ratios.sum(axis=1)).sum())


def tolerance(rate: float, count: int) -> float:
    """Returns how far the rate of `count` draws may be off."""
    return SIGMAS * float(np.sqrt(rate * (1 - rate) / count)) + 1e-9


def drawn(probabilities: np.ndarray, seed: int, count: int) -> np.ndarray:
    """Returns the tokens drawn at positions 0, 1, ..., by the project's own draw."""
    logits = torch.from_numpy(np.log(probabilities)).float().expand(count, -1)
    tokens, _ = draw_tokens(logits, list(range(count)), SamplingParams(temperature=1.0, seed=seed))
    return np.asarray(tokens)


@pytest.mark.parametrize("name", PAIRS)
def test_the_rate_of_a_pair_is_the_exact_one_and_inside_its_bounds(name: str) -> None:
    """For known p and q, with the same noise on both sides."""
    p, q = (normal(one) for one in PAIRS[name])
    rate = float((drawn(p, 3, NUM_DRAWS) == drawn(q, 3, NUM_DRAWS)).mean())
    least, most = bounds(p, q)
    exact = exact_rate(p, q)
    assert least <= exact + 1e-12
    assert exact <= most + 1e-12
    assert abs(rate - exact) <= tolerance(exact, NUM_DRAWS)
    assert least - tolerance(least, NUM_DRAWS) <= rate <= most + tolerance(most, NUM_DRAWS)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_a_draft_told_of_the_noise_draws_with_it(temperature: float) -> None:
    """The best child of a noise-aware draft is its own draw with the target's noise."""
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(300, 50, generator=generator)
    params = SamplingParams(temperature=temperature, seed=9)
    tokens, _ = draw_tokens(logits, list(range(300)), params)
    aim, ids = NoiseAim(params.seed, temperature), torch.arange(50)
    first = [int(aim.aimed(logits[at : at + 1], at, ids).argmax()) for at in range(300)]
    assert first == tokens


def test_noise_of_its_own_would_fall_short() -> None:
    """A draft that draws by another seed agrees by chance only: the check would notice."""
    p, q = (normal(one) for one in PAIRS["near"])
    rate = float((drawn(p, 3, NUM_DRAWS) == drawn(q, 4, NUM_DRAWS)).mean())
    least, _ = bounds(p, q)
    assert rate < least - tolerance(least, NUM_DRAWS)
    assert abs(rate - float(p @ q)) <= tolerance(float(p @ q), NUM_DRAWS)


def test_a_chain_is_accepted_within_the_bounds_of_every_prefix() -> None:
    """A chain of three over two table models: at each prefix that is reached often enough."""
    draft = TableModel(2)
    draft.logits = 0.75 * TARGET.logits + 0.25 * draft.logits
    tokens, node_tokens, rows = chains(draft)
    reached, accepted = np.zeros(len(PREFIXES)), np.zeros(len(PREFIXES))
    for chain, answers, visited in zip(
        tokens.tolist(), node_tokens.tolist(), rows.tolist(), strict=True
    ):
        # What the target draws after the last node is the bonus token, whichever it is.
        count = len(accept(chain, [0, 1, 2], [*answers, 0]).accepted_nodes)
        for depth, row in enumerate(visited):
            reached[row] += depth <= count
            accepted[row] += depth < count
    checked = 0
    for row, visits in enumerate(reached):
        if visits < 500:
            continue
        p, q = (one.logits[row].double().softmax(-1).numpy() for one in (TARGET, draft))
        (least, most), exact, rate = bounds(p, q), exact_rate(p, q), accepted[row] / visits
        assert abs(rate - exact) <= tolerance(exact, visits)
        assert least - tolerance(least, visits) <= rate <= most + tolerance(most, visits)
        checked += 1
    assert checked >= 6


def chains(draft: TableModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns drafted tokens, the target's at the same places, and table rows, (chains, 3) each.

    Every chain lies at positions of its own, so all noise is independent.
    """
    params = SamplingParams(temperature=1.0, seed=11)
    rows = np.full(NUM_CHAINS, TARGET.row(()))
    prefixes: list[tuple[int, ...]] = [()] * NUM_CHAINS
    columns: list[list[np.ndarray]] = [[], [], []]
    for depth in range(3):
        positions = (4 * np.arange(NUM_CHAINS) + depth).tolist()
        drafted = draw_tokens(draft.logits[rows], positions, params)[0]
        answered = draw_tokens(TARGET.logits[rows], positions, params)[0]
        for column, values in zip(columns, (drafted, answered, rows), strict=True):
            column.append(np.asarray(values))
        prefixes = [(*prefix, token) for prefix, token in zip(prefixes, drafted, strict=True)]
        rows = np.asarray([TARGET.row(prefix) for prefix in prefixes])
    tokens, answers, visited = (np.stack(column, axis=1) for column in columns)
    return tokens, answers, visited
