"""The policy of a request: what it asks for, else the deployment's, inside the limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arborist.common.config import SpeculationConfig
from arborist.core.dynamic_depth import DynamicDepthPolicy
from arborist.core.errors import InvalidArgumentError
from arborist.core.ngram import NgramPolicy
from arborist.core.policies import Policy
from arborist.core.policy import Eagle2Policy
from arborist.core.shape import TreeShape
from arborist.core.static_policy import ChainPolicy, StaticTreePolicy
from arborist.orchestrator.generation import SpeculationOptions
from arborist.orchestrator.policy_choice import PolicyChoice


def choose(config: dict[str, Any], **asked: Any) -> Policy | None:
    """Chooses for one request of one deployment."""
    return PolicyChoice(SpeculationConfig(**config)).choose(SpeculationOptions(**asked))


@pytest.mark.parametrize(
    ("config", "asked", "kind", "shape"),
    [
        ({}, {}, Eagle2Policy, TreeShape(3, 8, 15)),
        ({"depth": 5}, {"top_k": 2}, Eagle2Policy, TreeShape(5, 2, 15)),
        ({"policy": "chain"}, {}, ChainPolicy, TreeShape(3, 1, 3)),
        ({"policy": "chain"}, {"policy": "eagle2"}, Eagle2Policy, TreeShape(3, 8, 15)),
        ({}, {"policy": "dynamic_depth", "depth": 9}, DynamicDepthPolicy, TreeShape(9, 8, 15)),
        ({}, {"policy": "ngram"}, NgramPolicy, TreeShape(3, 8, 15)),
        ({}, {"policy": "eagle1_static"}, StaticTreePolicy, TreeShape(5, 4, 25)),
        ({"policy": "eagle1_static"}, {}, StaticTreePolicy, TreeShape(5, 4, 25)),
        ({"policy": "eagle1_static"}, {"depth": 2}, StaticTreePolicy, TreeShape(2, 4, 12)),
        (
            {"policy": "eagle1_static", "num_draft_tokens": 4, "max_num_draft_tokens": 9},
            {},
            StaticTreePolicy,
            TreeShape(2, 4, 9),
        ),
    ],
)
def test_a_request_wins_over_the_deployment(
    config: dict[str, Any], asked: dict[str, Any], kind: type, shape: TreeShape
) -> None:
    """A static tree has its own size, which requests and the deployment's limits cut."""
    policy = choose(config, **asked)
    assert policy is not None
    assert type(policy) is kind
    assert policy.shape == shape


@pytest.mark.parametrize(
    ("config", "asked", "adapts"),
    [
        ({}, {}, True),
        ({"adaptive": False}, {}, False),
        ({"adaptive": True}, {"policy": "eagle2"}, True),
        ({}, {"policy": "dynamic_depth"}, False),
        ({"policy": "chain"}, {}, False),
        ({"adaptive": True}, {"depth": 3}, False),
        ({"adaptive": True}, {"num_draft_tokens": 7}, False),
        ({"adaptive": False}, {"num_draft_tokens": 7, "adaptive": True}, True),
        ({"adaptive": True}, {"adaptive": False}, False),
    ],
)
def test_trees_follow_the_load_unless_their_size_is_said(
    config: dict[str, Any], asked: dict[str, Any], adapts: bool
) -> None:
    """By the deployment or by the request."""
    choice = PolicyChoice(SpeculationConfig(**config))
    assert choice.adapts(SpeculationOptions(**asked)) is adapts


@pytest.mark.parametrize(
    ("config", "asked"), [({"enabled": False}, {}), ({"policy": "chain"}, {"enabled": False})]
)
def test_off_is_plain_decoding(config: dict[str, Any], asked: dict[str, Any]) -> None:
    """Whatever the policy."""
    assert choose(config, **asked) is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"policy": "medusa"}, r"speculation\.policy = medusa: must be one of"),
        ({"depth": 7}, r"speculation\.depth = 7: must be an integer in \[1, 6\]"),
        ({"policy": "eagle1_static", "top_k": 0}, r"speculation\.top_k = 0"),
        ({"enabled": False, "depth": 7}, r"speculation\.depth = 7"),
    ],
)
def test_what_is_over_the_limits_is_refused(asked: dict[str, Any], message: str) -> None:
    """The message names field, value and limit, with speculation on or off."""
    with pytest.raises(InvalidArgumentError, match=message):
        choose({"max_depth": 6}, **asked)


def test_a_bad_tree_file_is_noticed_before_the_first_request(tmp_path: Path) -> None:
    """A deployment with it does not start."""
    with pytest.raises(InvalidArgumentError, match=r"speculation\.tree_file"):
        PolicyChoice(SpeculationConfig(tree_file=tmp_path / "none.json"))
