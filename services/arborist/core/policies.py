"""Every policy by its name."""

from __future__ import annotations

from typing import TypeAlias

from arborist.core.dynamic_depth import DynamicDepthPolicy
from arborist.core.errors import InvalidArgumentError
from arborist.core.ngram import NgramPolicy
from arborist.core.policy import Eagle2Policy, TreePolicy
from arborist.core.policy_settings import (
    DEFAULT_MIN_FRONTIER_LOGPROB,
    STATIC_POLICY,
    TREE_POLICY_NAMES,
    check_policy_name,
)
from arborist.core.shape import TreeShape
from arborist.core.static_policy import ChainPolicy, StaticTreePolicy
from arborist.core.tree_paths import TreePaths

Policy: TypeAlias = TreePolicy | NgramPolicy
"""Shapes what a draft worker proposes, or proposes by itself from the text."""


def policy_by_name(
    name: str,
    shape: TreeShape,
    *,
    paths: TreePaths | None = None,
    min_frontier_logprob: float = DEFAULT_MIN_FRONTIER_LOGPROB,
) -> Policy:
    """Makes a policy, one that needs a draft worker or one that does not.

    Args:
        name: One of policy_settings.POLICY_NAMES.
        shape: Bounds that every policy's tree keeps to.
        paths: See `tree_policy_by_name`.
        min_frontier_logprob: See `tree_policy_by_name`.
    Raises:
        InvalidArgumentError: Names field, value and limit.
    """
    check_policy_name(name)
    if name == "ngram":
        return NgramPolicy(shape)
    return tree_policy_by_name(name, shape, paths=paths, min_frontier_logprob=min_frontier_logprob)


def tree_policy_by_name(
    name: str,
    shape: TreeShape,
    *,
    paths: TreePaths | None = None,
    min_frontier_logprob: float = DEFAULT_MIN_FRONTIER_LOGPROB,
) -> TreePolicy:
    """Makes a policy that shapes what a draft worker proposes.

    Args:
        name: One of policy_settings.TREE_POLICY_NAMES.
        shape: Bounds that every policy's tree keeps to.
        paths: Nodes of `eagle1_static`, EAGLE-1's own 25 unless given; what the shape does not
            allow is left out.
        min_frontier_logprob: Where `dynamic_depth` stops, in [-100, 0].
    Raises:
        InvalidArgumentError: Names field, value and limit.
    """
    if name not in TREE_POLICY_NAMES:
        raise InvalidArgumentError(
            "speculation.policy", name, f"one of {', '.join(TREE_POLICY_NAMES)}"
        )
    if name == STATIC_POLICY:
        return StaticTreePolicy((paths or TreePaths.eagle1()).within(shape))
    if name == "chain":
        return ChainPolicy(shape)
    if name == "dynamic_depth":
        return DynamicDepthPolicy(shape, min_frontier_logprob)
    return Eagle2Policy(shape, value="_no_value" not in name, rerank="_no_rerank" not in name)
