"""A head in training, with the tables that are its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arborist.draft.checkpoint import Head, StoredHead
from arborist.draft.eagle3_head import Eagle3Head


class TrainedHead(nn.Module):
    """A head of one layer and, for EAGLE-3, its LM head over a draft vocabulary."""

    token_ids: Tensor | None
    draft_ids: Tensor | None

    def __init__(
        self, head: Head, lm_head: Tensor | None = None, token_ids: Sequence[int] | None = None
    ) -> None:
        """Join a head and its tables.

        Args:
            head: in fp32.
            lm_head: [Vd, H] to begin with; None = the target's is used, and stays as it is.
            token_ids: the target's id of each of the Vd draft ids, distinct; None without.
        """
        super().__init__()
        self.head = head
        self.lm_head: nn.Linear | None = None
        self.register_buffer("token_ids", None)
        self.register_buffer("draft_ids", None, persistent=False)
        if lm_head is None or token_ids is None:
            return
        self.lm_head = nn.Linear(lm_head.shape[1], lm_head.shape[0], bias=False)
        self.lm_head.weight.data = lm_head.detach().float().clone()
        self.token_ids = torch.tensor(token_ids, dtype=torch.int64)
        draft_ids = torch.full((head.config.vocab_size,), -1, dtype=torch.int64)  # [V]
        draft_ids[self.token_ids] = torch.arange(len(token_ids))
        self.draft_ids = draft_ids

    @property
    def is_eagle3(self) -> bool:
        """Whether it is an EAGLE-3 head."""
        return isinstance(self.head, Eagle3Head)

    def logits(self, states: Tensor) -> Tensor:
        """Logits over the draft vocabulary, [N, Vd] in fp32, of the head's outputs [N, H]."""
        if self.lm_head is None:
            raise ValueError("the head borrows its target's LM head")
        return F.linear(self.head.readout(states), self.lm_head.weight).float()

    def stored(self) -> StoredHead:
        """A copy as a draft worker would read it: on the CPU, in fp32, in evaluation mode."""
        head = copy.deepcopy(self.head).to("cpu", torch.float32).eval().requires_grad_(False)
        lm_head = None if self.lm_head is None else self.lm_head.weight.detach().cpu().clone()
        token_ids = None if self.token_ids is None else self.token_ids.cpu()
        return StoredHead(head, None, lm_head, token_ids)
