"""FR-Spec: a head that drafts frequent tokens only (arXiv 2502.14856)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from arborist.core.errors import InvalidArgumentError
from arborist.draft.checkpoint import StoredHead


def keep_frequent(stored: StoredHead, token_ids: Sequence[int], vocab_size: int) -> StoredHead:
    """Restricts the head's LM head to some rows; verifying is untouched, so outputs are too.

    The draft's softmax then runs over these tokens alone (FR-Spec §3), which is what makes a
    draft forward cheaper when the vocabulary is large beside the head.

    Args:
        stored: The head as it was read.
        token_ids: The target's ids to keep, distinct.
        vocab_size: Token ids of the target.
    Raises:
        InvalidArgumentError: The head has a draft vocabulary already, or an id is none of the
            target's.
    """
    if stored.token_ids is not None:
        raise InvalidArgumentError(
            "draft.vocabulary_file", "set", "unset: the head has a draft vocabulary of its own"
        )
    for index, one in enumerate(token_ids):
        if not 0 <= one < vocab_size:
            raise InvalidArgumentError(
                f"draft.vocabulary_file[{index}]", one, f"a token id in [0, {vocab_size})"
            )
    ids = torch.tensor(token_ids, dtype=torch.int64)  # [Vd]
    lm_head = None if stored.lm_head is None else stored.lm_head[ids]  # [Vd, H]
    return replace(stored, lm_head=lm_head, token_ids=ids)
