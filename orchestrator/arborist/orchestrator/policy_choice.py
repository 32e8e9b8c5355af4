"""Which policy drafts for a request: what it asks for, else what the deployment says."""

from __future__ import annotations

from arborist.common.config import SpeculationConfig
from arborist.common.tree_file import read_tree_file
from arborist.core.errors import InvalidArgumentError
from arborist.core.policies import Policy, policy_by_name
from arborist.core.policy_settings import ADAPTIVE_POLICY, STATIC_POLICY
from arborist.core.shape import TreeShape
from arborist.core.tree_paths import TreePaths
from arborist.orchestrator.generation import SpeculationOptions

_SIZES = ("depth", "top_k", "num_draft_tokens")


class PolicyChoice:
    """Makes the policy of every request of a deployment."""

    def __init__(self, config: SpeculationConfig) -> None:
        """Reads the deployment's static tree and tries its default policy.

        Args:
            config: Defaults, and how far a request may go.
        Raises:
            InvalidArgumentError: The tree file is no tree, or does not fit the limits.
        """
        self._config = config
        self._paths = (
            TreePaths.eagle1() if config.tree_file is None else read_tree_file(config.tree_file)
        )
        default = self.choose(SpeculationOptions())
        self.num_draft_tokens = 0 if default is None else default.shape.num_draft_tokens

    def choose(self, asked: SpeculationOptions) -> Policy | None:
        """Returns the request's policy, or None for plain decoding.

        Raises:
            InvalidArgumentError: Unknown policy, or a size over its limit.
        """
        config = self._config
        enabled = config.enabled if asked.enabled is None else asked.enabled
        policy = policy_by_name(
            config.policy if asked.policy is None else asked.policy,
            self._shape(asked),
            paths=self._paths,
            min_frontier_logprob=config.min_frontier_logprob,
        )
        return policy if enabled else None

    def adapts(self, asked: SpeculationOptions) -> bool:
        """Returns whether trees follow the load: of eagle2, unless the request says a size."""
        if asked.adaptive is not None:
            return asked.adaptive
        if (asked.policy or self._config.policy) != ADAPTIVE_POLICY:
            return False
        return self._config.adaptive and all(getattr(asked, name) is None for name in _SIZES)

    def _shape(self, asked: SpeculationOptions) -> TreeShape:
        """Returns the bounds of the tree.

        A static tree has a size of its own: only what the request itself says makes it smaller.
        """
        static = (asked.policy or self._config.policy) == STATIC_POLICY
        sizes: dict[str, int] = {}
        for name in _SIZES:
            limit: int = getattr(self._config, f"max_{name}")
            default: int = limit if static else getattr(self._config, name)
            value: int | None = getattr(asked, name)
            sizes[name] = default if value is None else value
            if not 1 <= sizes[name] <= limit:
                raise InvalidArgumentError(
                    f"speculation.{name}", sizes[name], f"an integer in [1, {limit}]"
                )
        return TreeShape(**sizes)
