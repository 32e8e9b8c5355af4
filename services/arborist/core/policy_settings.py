"""What can be said about a policy: its name, and where it stops. Light, for configuration."""

from __future__ import annotations

from typing import Literal, get_args

from arborist.core.errors import InvalidArgumentError

TreePolicyName = Literal[
    "eagle2",
    "eagle1_static",
    "chain",
    "dynamic_depth",
    "eagle2_no_value",
    "eagle2_no_rerank",
    "eagle2_no_value_no_rerank",
]
PolicyName = Literal[TreePolicyName, "ngram"]
TREE_POLICY_NAMES: tuple[TreePolicyName, ...] = get_args(TreePolicyName)
"""Policies that shape what a draft worker proposes."""
POLICY_NAMES: tuple[PolicyName, ...] = get_args(PolicyName)
ADAPTIVE_POLICY: PolicyName = "eagle2"
"""The policy whose trees follow the load by themselves."""
STATIC_POLICY: PolicyName = "eagle1_static"
"""The policy whose tree comes from a list of paths."""

DraftCalls = Literal["level", "tree"]
"""How a controller drafts: a command per level, or one for the whole tree."""
DRAFT_CALLS: tuple[DraftCalls, ...] = get_args(DraftCalls)
DEFAULT_MIN_FRONTIER_LOGPROB = -0.5
"""Where dynamic_depth stops: on the embedded pair the best of those that keep a second level, for
every tree measured (docs/policies.md); its paper took -0.3, which stops sooner."""
LOWEST_FRONTIER_LOGPROB = -100.0
"""Lowest threshold taken: no real frontier is that unlikely."""
_MAX_ECHO_LENGTH = 64


def check_policy_name(name: str) -> None:
    """Refuses a name that no policy has.

    Raises:
        InvalidArgumentError: Lists the names.
    """
    if name not in POLICY_NAMES:
        limit = f"one of {', '.join(POLICY_NAMES)}"
        raise InvalidArgumentError("speculation.policy", printable_policy_name(name), limit)


def printable_policy_name(name: str) -> str:
    """Returns an unknown name as an error may show it: short, printable, never empty."""
    return name[:_MAX_ECHO_LENGTH].encode("unicode_escape").decode("ascii") or "empty"
