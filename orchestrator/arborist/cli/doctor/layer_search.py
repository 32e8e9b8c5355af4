"""Which layers of the target a head's first choices agree with best."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TypeAlias

from torch import Tensor, cat

from arborist.cli.doctor.teacher_forcing import Passage, agreements, forced_run, read_features
from arborist.core.engine import DraftEngine, TargetEngine
from arborist.core.errors import MismatchError
from arborist.core.features import FeatureSpec
from arborist.draft.feature_layers import default_feature_layers

Layers: TypeAlias = tuple[int, ...]
MAX_PASSAGES = 4


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """Layers and how well they suit.

    Attributes:
        layers: Whose inputs the head is fed; None = the state after the final norm.
        agreement: Share of the target's tokens that were the head's first choice.
    """

    layers: Layers | None
    agreement: float


class LayerSearch:
    """Feeds a head with the inputs of other layers than those it asks for."""

    def __init__(
        self, target: TargetEngine, draft: DraftEngine, passages: Sequence[Passage]
    ) -> None:
        """Runs some passages through the target, keeping the inputs of all layers.

        Args:
            target: Engine of the target.
            draft: Engine of the head.
            passages: The first few are used.
        """
        self._draft = draft
        self._num_layers = target.info.num_layers
        self._hidden = target.info.hidden_size
        self._passages = passages[:MAX_PASSAGES]
        every = FeatureSpec(tuple(range(self._num_layers)))
        self._inputs = [read_features(target, one, every) for one in self._passages]
        self._normed = [read_features(target, one, None) for one in self._passages]

    def best(self) -> LayerChoice:
        """Returns the best layers found.

        A head of one feature is tried with the final norm and with every layer. One of several is
        tried with the official choice, with its own layers moved by one, as happens when outputs
        are taken for inputs, and with each of its layers replaced; then so is the best of these.
        """
        spec = self._draft.feature_spec
        asked = None if spec is None else spec.layer_ids
        if asked is None or len(asked) == 1:
            return self._try([None, *((layer,) for layer in range(self._num_layers))])
        best = self._try([*self._neighbours(asked), *self._replaced(asked)])
        again = self._try(self._replaced(best.layers or asked))
        return max(best, again, key=lambda one: one.agreement)

    def _replaced(self, layers: Layers) -> list[Layers]:
        """Returns the layers and, ascending as they must be, those that differ in one of them."""
        tried = [
            (*layers[:slot], layer, *layers[slot + 1 :])
            for slot in range(len(layers))
            for layer in range(self._num_layers)
        ]
        return [layers, *(one for one in tried if list(one) == sorted(set(one)))]

    def _neighbours(self, asked: Layers) -> list[Layers]:
        moved = [tuple(layer + by for layer in asked) for by in (0, 1, -1)]
        with contextlib.suppress(MismatchError):  # Too few layers: there is no official choice.
            moved.append(default_feature_layers(self._num_layers))
        limits = range(self._num_layers)
        return [
            layers
            for layers in moved
            if len(layers) == len(asked) and all(layer in limits for layer in layers)
        ]

    def _try(self, candidates: Sequence[Layers | None]) -> LayerChoice:
        runs = [
            forced_run(passage, self._features(number, layers))
            for layers in candidates
            for number, passage in enumerate(self._passages)
        ]
        shares, count = agreements(self._draft, runs), len(self._passages)
        return max(
            (
                LayerChoice(layers, mean(shares[number * count : (number + 1) * count]))
                for number, layers in enumerate(candidates)
            ),
            key=lambda one: one.agreement,
        )

    def _features(self, number: int, layers: Layers | None) -> Tensor:
        if layers is None:
            return self._normed[number]
        inputs, width = self._inputs[number], self._hidden
        return cat([inputs[:, layer * width : (layer + 1) * width] for layer in layers], -1)
