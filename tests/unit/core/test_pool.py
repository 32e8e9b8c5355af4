"""Pools that a draft grew by itself: which policies can, and what the controller believes."""

import numpy as np
import pytest

from arborist.core.dynamic_depth import DynamicDepthPolicy
from arborist.core.errors import InvalidArgumentError
from arborist.core.policies import tree_policy_by_name
from arborist.core.policy import Eagle2Policy
from arborist.core.policy_settings import TREE_POLICY_NAMES
from arborist.core.pool import Pool, PoolLevel
from arborist.core.pool_policies import POOL_POLICY_NAMES, pool_policy, pool_policy_name
from arborist.core.shape import TreeShape
from arborist.core.tree import DraftTree, Level

SHAPE = TreeShape(depth=4, top_k=3, num_draft_tokens=8)


def random_level(rng: np.random.Generator, rows: int, top_k: int) -> Level:
    """A level of distinct tokens with log-probs in order."""
    tokens = np.stack([rng.permutation(50)[:top_k] for _ in range(rows)])
    logprobs = -np.sort(rng.exponential(size=(rows, top_k)), axis=1)
    return Level(tokens.astype(np.int64), logprobs.astype(np.float32))


def grown(name: str, depth: int, top_k: int, seed: int) -> tuple[Level, Pool, DraftTree]:
    """Level 1, the pool a worker would send, and the tree it comes from."""
    rng = np.random.default_rng(seed)
    policy = pool_policy(name, depth, top_k)
    first = random_level(rng, 1, top_k)
    tree, levels = DraftTree(first), []
    while (frontier := policy.frontier(tree)) is not None:
        level = random_level(rng, len(frontier), top_k)
        levels.append(PoolLevel(frontier, level, 1.5))
        tree.grow(frontier, level)
    return first, Pool(levels), tree


@pytest.mark.parametrize(("name", "top_k"), [("eagle2", 3), ("eagle2_no_value", 3), ("chain", 1)])
def test_a_pool_grows_the_tree_it_came_from(name: str, top_k: int) -> None:
    """The controller selects the same nodes from the pool as from level after level."""
    first, pool, tree = grown(name, 4, top_k, seed=5)
    policy = tree_policy_by_name(name, TreeShape(4, 3, 8))
    assert pool.tree(first).num_levels == 4
    assert policy.select(pool.tree(first)) == policy.select(tree)
    assert pool.compute_ms == [1.5] * 3


def test_policies_that_need_nothing_but_the_pool_have_a_name() -> None:
    """A name found for a policy makes one with the same frontiers; the others have none."""
    found = {name: pool_policy_name(tree_policy_by_name(name, SHAPE)) for name in TREE_POLICY_NAMES}
    assert {name for name, known in found.items() if known} == set(POOL_POLICY_NAMES)
    assert all(known in (None, name) for name, known in found.items())
    assert pool_policy_name(DynamicDepthPolicy(SHAPE)) is None
    assert pool_policy_name(Eagle2Policy(SHAPE, rerank=False)) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("medusa", 4, 3), r"expand_tree\.policy = medusa: must be one of eagle2, "),
        (("", 4, 3), r"expand_tree\.policy = empty"),
        (("eagle2_no_rerank", 4, 3), r"expand_tree\.policy"),
        (("eagle2", 1, 3), r"expand_tree\.depth = 1: must be in \[2, 16\]"),
        (("eagle2", 17, 3), r"expand_tree\.depth = 17"),
        (("eagle2", 4, 0), r"expand_tree\.top_k = 0: must be in \[1, 32\]"),
        (("eagle2", 4, 33), r"expand_tree\.top_k = 33"),
        (("chain", 4, 2), r"expand_tree\.top_k = 2: must be in \[1, 1\] for chain"),
    ],
)
def test_what_no_worker_follows_is_refused(arguments: tuple[str, int, int], message: str) -> None:
    """The error names field, value and limit."""
    with pytest.raises(InvalidArgumentError, match=message):
        pool_policy(*arguments)


@pytest.mark.parametrize(
    "frontier", [[0, 1, 9], [-1, 0, 1], [0, 0, 1], [0, 1], [0, 1, 2, 3]], ids=str
)
def test_rows_of_no_level_are_refused(frontier: list[int]) -> None:
    """Drafts are not trusted: what a level expanded must be of the level before, once each."""
    first, pool, _ = grown("eagle2", 4, 3, seed=1)
    good, last = pool.levels[0], pool.levels[1]
    bad = PoolLevel(np.array(frontier, dtype=np.int64), last.level, 0.0)
    with pytest.raises(InvalidArgumentError, match=r"pool\.rows"):
        Pool([good, bad]).tree(first)


def test_too_many_levels_are_refused() -> None:
    """With level 1 there are at most 16."""
    first, pool, _ = grown("chain", 16, 1, seed=2)
    assert pool.tree(first).num_levels == 16
    with pytest.raises(InvalidArgumentError, match=r"pool\.levels"):
        Pool([*pool.levels, pool.levels[-1]]).tree(first)
