"""What is minimised: one call for both kinds of heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from arborist.draft.head import EagleHead
from arborist.training.eagle3_loss import Eagle3Loss
from arborist.training.head_loss import HeadLoss
from arborist.training.target_states import TargetReadout
from arborist.training.trained_head import TrainedHead


@dataclass(frozen=True)
class HeadBatch:
    """Sequences padded on the right, with their target's states.

    ``token_ids`` and ``weights`` are [B, T], ``features`` [B, T, W], ``finals`` [B, T, H];
    ``generator`` draws the noise of this batch, the same whenever it comes.
    """

    token_ids: Tensor
    weights: Tensor
    features: Tensor
    finals: Tensor
    generator: torch.Generator | None = None


class HeadObjective(Protocol):
    """Summed loss of a batch, and how many of the target's favourites each pass named."""

    def __call__(
        self, model: TrainedHead, readout: TargetReadout, embedding: Tensor, batch: HeadBatch
    ) -> tuple[Tensor, list[int]]:
        """Loss in nats and counts."""
        ...


@dataclass(frozen=True)
class Eagle2Objective:
    """Distribution and feature of the target, for a head that borrows its LM head."""

    loss: HeadLoss

    def __call__(
        self, model: TrainedHead, readout: TargetReadout, embedding: Tensor, batch: HeadBatch
    ) -> tuple[Tensor, list[int]]:
        """Loss in nats and counts."""
        if not isinstance(model.head, EagleHead):
            raise ValueError("the loss of EAGLE-1/2 is for EAGLE-1/2 heads")
        return self.loss(
            model.head,
            readout.lm_head,
            embedding,
            batch.token_ids,
            batch.features,
            batch.weights,
            batch.generator,
        )


@dataclass(frozen=True)
class Eagle3Objective:
    """Distribution of the target over the draft vocabulary."""

    loss: Eagle3Loss

    def __call__(
        self, model: TrainedHead, readout: TargetReadout, embedding: Tensor, batch: HeadBatch
    ) -> tuple[Tensor, list[int]]:
        """Loss in nats and counts."""
        return self.loss(
            model,
            readout,
            embedding,
            batch.token_ids,
            batch.features,
            batch.finals,
            batch.weights,
        )
