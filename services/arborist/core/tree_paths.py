"""A tree given in advance: the paths of child ranks it is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from arborist.core.errors import InvalidArgumentError
from arborist.core.shape import MAX_DEPTH, MAX_NUM_DRAFT_TOKENS, MAX_TOP_K, TreeShape

RankPath: TypeAlias = tuple[int, ...]
"""Child ranks from the root: (0, 2) is the third best child of the best child."""

EAGLE1_PATHS: tuple[RankPath, ...] = (
    *((0,), (1,), (2,), (3,)),
    *((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)),
    *((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1), (1, 0, 0)),
    *((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2)),
    *((0, 0, 0, 0, 0), (0, 0, 0, 0, 1)),
)
"""EAGLE-1's tree of 25 nodes, named mc_sim_7b_63 in its code."""


class TreePaths:
    """The nodes of a static tree, each named by its path; parents before children.

    Built from any list of paths; order does not matter, a node's parent must be listed too.
    """

    def __init__(self, paths: Iterable[Sequence[int]]) -> None:
        """Checks the paths.

        Args:
            paths: Paths of child ranks from the root, at least one.
        Raises:
            InvalidArgumentError: Names the path and what is wrong with it.
        """
        listed = [_check_path(index, path) for index, path in enumerate(paths)]
        _check_tree(listed)
        self._paths = sorted(listed, key=lambda path: (len(path), path))

    @classmethod
    def eagle1(cls) -> TreePaths:
        """Returns EAGLE-1's own tree of 25 nodes."""
        return cls(EAGLE1_PATHS)

    def __len__(self) -> int:
        """Returns the number of nodes, root excluded."""
        return len(self._paths)

    @property
    def paths(self) -> list[RankPath]:
        """Returns every path, level by level."""
        return list(self._paths)

    @property
    def shape(self) -> TreeShape:
        """Returns the smallest shape that holds the tree."""
        return TreeShape(
            depth=max(len(path) for path in self._paths),
            top_k=1 + max(max(path) for path in self._paths),
            num_draft_tokens=len(self._paths),
        )

    def level(self, depth: int) -> list[RankPath]:
        """Returns the paths of one level, in order; `depth` from 1."""
        return [path for path in self._paths if len(path) == depth]

    def within(self, shape: TreeShape) -> TreePaths:
        """Returns the part of the tree that a shape allows.

        Whatever is deeper than `depth` or has a rank of `top_k` or more goes, then the last
        nodes, level by level, until num_draft_tokens are left: what is left is one tree.

        Raises:
            InvalidArgumentError: Nothing would be left.
        """
        fitting = [
            path for path in self._paths if len(path) <= shape.depth and max(path) < shape.top_k
        ]
        if not fitting:
            least = 1 + min(path[0] for path in self._paths)
            raise InvalidArgumentError(
                "speculation.top_k", shape.top_k, f"at least {least} for this static tree"
            )
        return TreePaths(fitting[: shape.num_draft_tokens])


def _check_path(index: int, path: Sequence[int]) -> RankPath:
    name = f"static tree, path {index}"
    if isinstance(path, str) or not isinstance(path, Sequence):
        raise InvalidArgumentError(name, type(path).__name__, "a list of child ranks")
    if not 1 <= len(path) <= MAX_DEPTH:
        raise InvalidArgumentError(name, f"{len(path)} ranks", f"1 to {MAX_DEPTH} ranks")
    for rank in path:
        if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < MAX_TOP_K:
            raise InvalidArgumentError(name, rank, f"made of integers in [0, {MAX_TOP_K})")
    return tuple(path)


def _check_tree(paths: list[RankPath]) -> None:
    known = set(paths)
    if not 1 <= len(paths) <= MAX_NUM_DRAFT_TOKENS:
        limit = f"1 to {MAX_NUM_DRAFT_TOKENS} paths"
        raise InvalidArgumentError("static tree", f"{len(paths)} paths", limit)
    if len(known) != len(paths):
        twice = next(path for path, count in Counter(paths).items() if count > 1)
        raise InvalidArgumentError("static tree", f"{list(twice)} twice", "distinct paths")
    parents = {path[:-1] for path in known if len(path) > 1}
    if orphans := sorted(parents - known):
        raise InvalidArgumentError(
            "static tree", f"without {list(orphans[0])}", "listed with every node's parent"
        )
    for depth, count in Counter(len(parent) for parent in parents).items():
        if count > MAX_TOP_K:
            raise InvalidArgumentError(
                f"static tree, nodes with children at depth {depth}", count, f"at most {MAX_TOP_K}"
            )
