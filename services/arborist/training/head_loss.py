"""Loss of an EAGLE-1/2 head against its target, over unrolled passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from arborist.draft.head import EagleHead
from arborist.training.unroll import UnrolledAttention


@dataclass(frozen=True)
class HeadLoss:
    """Weights of the parts.

    EAGLE §4.2 adds a tenth of a soft cross-entropy to the feature loss; here the cross-entropy
    leads, since the tree is built from the probabilities.
    """

    num_passes: int = 3
    pass_decay: float = 0.9
    feature_weight: float = 0.2
    noise: float = 0.1
    softcap: float | None = None
    """Bound of the target's logits, as in Gemma 2."""

    def __call__(
        self,
        head: EagleHead,
        lm_head: Tensor,
        embedding: Tensor,
        token_ids: Tensor,
        features: Tensor,
        weights: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, list[int]]:
        """Summed loss of a batch of sequences, padded on the right.

        Args:
            head: one layer.
            lm_head: of the target, [V, H], frozen.
            embedding: of the target, [V, H], frozen.
            token_ids: x, [B, T] int64.
            features: f, [B, T, H], the target's; pair t is (f_t, x_{t+1}).
            weights: [B, T], weight of token t as a label: x_{t+2} is the label of pair t.
            generator: of the noise, on the CPU; None = torch's own.
        Returns:
            the loss in nats, and for each pass how many of the target's favourites the head named.
        """
        rows, columns = token_ids.shape[0], token_ids.shape[1] - 1
        width = features.shape[-1]
        pairs = F.embedding(token_ids[:, 1:], embedding).reshape(-1, width)  # [B·(T-1), H]
        index, kept = label_rows(weights)  # [N] each
        wanted = features[:, 1:].reshape(-1, width)[index]  # [N, H]
        target_logits = F.linear(wanted, lm_head).float()  # [N, V]
        if self.softcap is not None:
            target_logits = self.softcap * torch.tanh(target_logits / self.softcap)
        target_probs = target_logits.softmax(-1)
        favourites = target_logits.argmax(-1)
        inputs = features[:, :-1]  # [B, T-1, H]
        if self.noise:
            uniform = torch.rand(inputs.shape, generator=generator).to(inputs)
            inputs = inputs + (uniform - 0.5) * (2 * self.noise)
        positions = torch.arange(columns, device=token_ids.device).repeat(rows)
        attention = UnrolledAttention(rows, columns)
        total = features.new_zeros(())
        agreed = []
        for number in range(self.num_passes):
            output = head(pairs, inputs.reshape(-1, width), positions, attention.attend)
            chosen = output[index]  # [N, H]
            logprobs = F.linear(chosen, lm_head).float().log_softmax(-1)
            soft = -(target_probs * logprobs).sum(-1)
            close = F.smooth_l1_loss(chosen.float(), wanted.float(), reduction="none").mean(-1)
            total = (
                total
                + self.pass_decay**number * ((soft + self.feature_weight * close) * kept).sum()
            )
            agreed.append(int((logprobs.argmax(-1) == favourites).sum()))
            # What is predicted at t is the feature of t+1; the first pair keeps its true one.
            shifted = output.view(rows, columns, width)[:, :-1]
            inputs = torch.cat([features[:, :1], shifted], 1)
        return total, agreed


def label_rows(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs that have a label.

    Args:
        weights: [B, T], weight of token t as a label: x_{t+2} is the label of pair t.
    Returns:
        their places among the B·(T-1) pairs, and their weights; [N] each.
    """
    kept = F.pad(weights[:, 2:], (0, 1)).reshape(-1)  # [B·(T-1)]
    index = kept.nonzero()[:, 0]
    return index, kept[index]
