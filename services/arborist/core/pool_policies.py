"""Policies that a draft worker can follow by itself: their frontier needs nothing but the pool."""

from __future__ import annotations

from arborist.core.errors import InvalidArgumentError
from arborist.core.policies import tree_policy_by_name
from arborist.core.policy import Eagle2Policy, TreePolicy
from arborist.core.policy_settings import printable_policy_name
from arborist.core.shape import MAX_DEPTH, MAX_NUM_DRAFT_TOKENS, MAX_TOP_K, TreeShape
from arborist.core.static_policy import ChainPolicy

POOL_POLICY_NAMES = ("eagle2", "eagle2_no_value", "chain")
"""The others depend on a threshold, a list of paths or num_draft_tokens, which stay with the
controller."""


def pool_policy(name: str, depth: int, top_k: int) -> TreePolicy:
    """Makes the policy that chooses the frontiers of an ExpandTree.

    Args:
        name: One of POOL_POLICY_NAMES.
        depth: Levels below the root, in [2, 16]: level 1 is the Extend's.
        top_k: Frontier width and children per node, in [1, 32]; 1 for a chain.
    Raises:
        InvalidArgumentError: Names field, value and limit.
    """
    check_pool_policy(name, depth, top_k)
    return tree_policy_by_name(name, TreeShape(depth, top_k, MAX_NUM_DRAFT_TOKENS))


def check_pool_policy(name: str, depth: int, top_k: int) -> None:
    """Refuses what `pool_policy` cannot make.

    Raises:
        InvalidArgumentError: Names field, value and limit.
    """
    if name not in POOL_POLICY_NAMES:
        limit = f"one of {', '.join(POOL_POLICY_NAMES)}"
        raise InvalidArgumentError("expand_tree.policy", printable_policy_name(name), limit)
    if not 2 <= depth <= MAX_DEPTH:
        raise InvalidArgumentError("expand_tree.depth", depth, f"in [2, {MAX_DEPTH}]")
    most = 1 if name == "chain" else MAX_TOP_K
    if not 1 <= top_k <= most:
        raise InvalidArgumentError("expand_tree.top_k", top_k, f"in [1, {most}] for {name}")


def pool_policy_name(policy: TreePolicy) -> str | None:
    """Returns the name by which a draft worker can follow a policy; None = only level by level."""
    if isinstance(policy, ChainPolicy):
        return "chain"
    # Not a subclass: those stop where another rule says so.
    if type(policy) is Eagle2Policy and policy.reranks:
        return "eagle2" if policy.follows_value else "eagle2_no_value"
    return None
