"""Sampling with speculation draws from the target's distribution: exact marginals, chi-square.

Goal: the joint of the first three tokens over 100,000 seeds per tree shape matches the enumerated
distribution (p > 0.001), and a planted biased rule does not. Method: a table language model over
five tokens whose conditionals are known, drafted by another table, decoded by the project's own
noise, draw, tree and accept walk.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from arborist.core.accept import Acceptance, accept
from arborist.core.policy import Eagle2Policy
from arborist.core.sampling import SamplingParams, draw_tokens, process_logits
from arborist.core.shape import TreeShape
from arborist.core.tree import DraftTree, Level, VerifyTree

VOCAB = 5
LENGTH = 3
# Rows of the table; a node deeper than the joint is long reuses the row of its last two tokens.
PREFIXES = [
    prefix for length in range(LENGTH) for prefix in itertools.product(range(VOCAB), repeat=length)
]
SETTINGS = [
    (SamplingParams(temperature=0.8), 100_000),
    (SamplingParams(temperature=1.3, top_k=4, top_p=0.9), 10_000),
    (SamplingParams(temperature=1.0, min_p=0.1), 10_000),
]
SHAPES = [TreeShape(1, 2, 2), TreeShape(2, 2, 4), TreeShape(3, 3, 7)]
AcceptRule = Callable[[Sequence[int], Sequence[int], Sequence[int]], Acceptance]
Row = tuple[int, ...]


class TableModel:
    """Raw logits for every prefix of at most two tokens."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._index = {prefix: row for row, prefix in enumerate(PREFIXES)}
        self.logits = torch.randn(len(PREFIXES), VOCAB, generator=generator) * 1.5
        self.logprobs = self.logits.log_softmax(-1).numpy()

    def row(self, prefix: Row) -> int:
        """Returns the table row of a prefix; past the joint's end any fixed row will do."""
        return self._index[prefix[: LENGTH - 1]]


TARGET, DRAFT = TableModel(1), TableModel(2)


def target_token_table(params: SamplingParams, seeds: range) -> np.ndarray:
    """Returns the target's token for every seed, prefix row, by the project's own draw."""
    positions = [len(prefix) for prefix in PREFIXES]
    table = np.empty((len(seeds), len(PREFIXES)), dtype=np.int64)
    for at, seed in enumerate(seeds):
        seeded = SamplingParams(params.temperature, params.top_k, params.top_p, params.min_p, seed)
        table[at], _ = draw_tokens(TARGET.logits, positions, seeded)
    return table


def draft_tree(prefix: Row, shape: TreeShape) -> VerifyTree:
    """Drafts below a prefix with the project's own policy and tree."""
    policy = Eagle2Policy(shape)

    def level(paths: list[Row]) -> Level:
        rows = np.stack([DRAFT.logprobs[DRAFT.row(path)] for path in paths])
        tokens = np.argsort(-rows, axis=1, kind="stable")[:, : shape.top_k]
        return Level(tokens, np.take_along_axis(rows, tokens, axis=1).astype(np.float32))

    newest = level([prefix])
    tree, paths = DraftTree(newest), [(*prefix, int(t)) for t in newest.tokens[0]]
    while (frontier := policy.frontier(tree)) is not None:
        parents = [paths[i] for i in frontier]
        newest = level(parents)
        tree.grow(frontier, newest)
        paths = [
            (*parent, int(t))
            for parent, row in zip(parents, newest.tokens, strict=True)
            for t in row
        ]
    return policy.select(tree)


def decode(tokens_of_seed: np.ndarray, trees: dict[Row, VerifyTree], rule: AcceptRule) -> Row:
    """Decodes three tokens round by round with the given accept rule."""
    output: Row = ()
    while len(output) < LENGTH:
        tree = trees[output]
        prefixes = [output]
        for token, parent in zip(tree.tokens, tree.parent_indices, strict=True):
            prefixes.append((*prefixes[parent], token))
        node_tokens = [int(tokens_of_seed[TARGET.row(prefix)]) for prefix in prefixes]
        outcome = rule(tree.tokens, tree.parent_indices, node_tokens)
        path = [tree.tokens[node - 1] for node in outcome.accepted_nodes]
        output = (*output, *path, outcome.bonus)
    return output[:LENGTH]


def plain_output(tokens_of_seed: np.ndarray) -> Row:
    """Decodes three tokens one by one."""
    output: Row = ()
    while len(output) < LENGTH:
        output = (*output, int(tokens_of_seed[TARGET.row(output)]))
    return output


def p_value(outputs: list[Row], params: SamplingParams) -> float:
    """Returns the chi-square p-value of the outputs against the exact joint distribution."""
    probs = process_logits(TARGET.logits, params).softmax(-1).double().numpy()
    cells = list(itertools.product(range(VOCAB), repeat=LENGTH))
    expected = np.array(
        [
            math.prod(probs[TARGET.row(cell[:at]), cell[at]] for at in range(LENGTH))
            for cell in cells
        ]
    )
    counts = dict.fromkeys(cells, 0)
    for output in outputs:
        counts[output] += 1
    observed = np.array([counts[cell] for cell in cells], dtype=float)

    assert observed[expected == 0].sum() == 0, "a token outside the allowed set was drawn"

    expected *= len(outputs)
    common = expected >= 5  # The usual rule; the rest is one cell.
    rest = expected > 0
    rest &= ~common
    observed = np.append(observed[common], observed[rest].sum())
    expected = np.append(expected[common], expected[rest].sum())
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    return float(chisquare(observed, expected * observed.sum() / expected.sum()).pvalue)


@pytest.fixture(scope="module", params=SETTINGS, ids=["t0.8", "t1.3k4p0.9", "minp"])
def drawn(request: pytest.FixtureRequest) -> tuple[SamplingParams, np.ndarray]:
    """One token table per sampling setting, shared by the shapes."""
    params, draws = request.param
    return params, target_token_table(params, range(draws))


def outputs_of(table: np.ndarray, shape: TreeShape, rule: AcceptRule) -> list[Row]:
    """Decodes every seed of the table."""
    trees = {prefix: draft_tree(prefix, shape) for prefix in PREFIXES if len(prefix) < LENGTH}
    return [decode(row, trees, rule) for row in table]


@pytest.mark.timeout(300)
def test_speculative_sampling_draws_from_the_target(
    drawn: tuple[SamplingParams, np.ndarray],
) -> None:
    """For three tree shapes the joint of the first three tokens fits the exact distribution."""
    params, table = drawn
    plain = [plain_output(row) for row in table]

    assert p_value(plain, params) > 0.001
    for shape in SHAPES:
        assert outputs_of(table, shape, accept) == plain


def test_a_biased_rule_is_caught() -> None:
    """A rule that takes the best child in place of an undrafted target token fails."""

    def biased(
        tokens: Sequence[int], parents: Sequence[int], node_tokens: Sequence[int]
    ) -> Acceptance:
        honest = accept(tokens, parents, node_tokens)
        if honest.accepted_nodes or not tokens or node_tokens[0] % 2:
            return honest
        return Acceptance((1,), node_tokens[1])

    params = SETTINGS[0][0]
    table = target_token_table(params, range(20_000))

    assert p_value(outputs_of(table, SHAPES[1], biased), params) < 1e-6
