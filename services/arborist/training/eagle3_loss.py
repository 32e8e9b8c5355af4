"""Loss of an EAGLE-3 head: training-time test, cross-entropy alone (arXiv 2503.01840, §3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from arborist.draft.eagle3_head import Eagle3Head
from arborist.training.head_loss import label_rows
from arborist.training.target_states import TargetReadout
from arborist.training.trained_head import TrainedHead
from arborist.training.unroll import UnrolledAttention


@dataclass(frozen=True)
class Eagle3Loss:
    """Passes of the training-time test, and what each weighs over the last."""

    num_passes: int = 7
    pass_decay: float = 0.8

    def __call__(
        self,
        model: TrainedHead,
        readout: TargetReadout,
        embedding: Tensor,
        token_ids: Tensor,
        features: Tensor,
        finals: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, list[int]]:
        """Summed loss of a batch of sequences, padded on the right.

        Pass 1 fuses the target's layers; every later one is fed what the pass before it gave one
        position earlier, which is what a draft does inside its tree. The target's distribution is
        taken over the draft vocabulary, and pairs whose favourite is not in it teach nothing (they
        could only teach to be wrong).

        Args:
            model: an EAGLE-3 head with its LM head.
            readout: of the target.
            embedding: of the target, [V, H], frozen.
            token_ids: x, [B, T] int64.
            features: of the target's layers, [B, T, W]; pair t is (f_t, x_{t+1}).
            finals: states after the target's final norm, [B, T, H].
            weights: [B, T], weight of token t as a label: x_{t+2} is the label of pair t.
        Returns:
            the loss in nats, and for each pass how many of the target's favourites the head named.
        """
        head, draft_ids, drafted = model.head, model.draft_ids, model.token_ids
        if not isinstance(head, Eagle3Head) or draft_ids is None or drafted is None:
            raise ValueError("the loss of EAGLE-3 is for EAGLE-3 heads")
        rows, columns = token_ids.shape[0], token_ids.shape[1] - 1
        pairs = F.embedding(token_ids[:, 1:], embedding).flatten(0, 1)  # [B·(T-1), H]
        index, kept = label_rows(weights)  # [N] each
        target_logits = readout.logits(finals[:, 1:].flatten(0, 1)[index])  # [N, V]
        favourites = draft_ids[target_logits.argmax(-1)]
        known = favourites >= 0
        index, kept, favourites = index[known], kept[known], favourites[known]
        target_probs = target_logits[known][:, drafted].softmax(-1)  # [N', Vd]
        # In half precision too the states that pass from step to step stay in fp32.
        states = head.fuse(features[:, :-1].flatten(0, 1)).float()  # [B·(T-1), H]
        first = states.view(rows, columns, -1)[:, :1]
        positions = torch.arange(columns, device=token_ids.device).repeat(rows)
        attention = UnrolledAttention(rows, columns)
        total = states.new_zeros((), dtype=torch.float32)
        agreed = []
        for number in range(self.num_passes):
            output = head(pairs, states, positions, attention.attend)
            logprobs = model.logits(output[index]).log_softmax(-1)
            soft = -(target_probs * logprobs).sum(-1)
            total = total + self.pass_decay**number * (soft * kept).sum()
            agreed.append(int((logprobs.argmax(-1) == favourites).sum()))
            # What is given at t is the state of t+1; the first pair keeps its true one.
            shifted = output.view(rows, columns, -1)[:, :-1]
            states = torch.cat([first, shifted], 1).flatten(0, 1)
        return total, agreed
