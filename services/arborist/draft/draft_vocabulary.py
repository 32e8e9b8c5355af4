"""A draft vocabulary: some of the target's token ids, which the head's LM head covers."""

from __future__ import annotations

import torch
from torch import Tensor

from arborist.core.errors import MismatchError

OFFSETS = "d2t"
"""int64 (Vd,): the target's id of draft id i is i + d2t[i]."""
MEMBERS = "t2d"
"""bool (V,): which of the target's ids are in the draft vocabulary."""


def token_ids_of(offsets: Tensor, members: Tensor | None, vocab_size: int) -> Tensor:
    """Returns the target's id of every draft id.

    Args:
        offsets: The tensor `d2t`.
        members: The tensor `t2d`, checked against it; None = the file has none.
        vocab_size: Token ids of the target.
    Returns:
        int64 (Vd,), distinct.
    Raises:
        MismatchError: Ids leave the vocabulary or repeat, or the two tensors disagree.
    """
    if offsets.dim() != 1 or offsets.is_floating_point() or not offsets.numel():
        raise _mismatch(OFFSETS, f"has shape {list(offsets.shape)} and dtype {offsets.dtype}")
    ids = offsets.long() + torch.arange(offsets.numel())
    if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
        raise _mismatch(OFFSETS, f"leads outside of the vocabulary of {vocab_size}")
    if len(set(ids.tolist())) != ids.numel():
        raise _mismatch(OFFSETS, "names a token twice")
    if members is not None:
        if tuple(members.shape) != (vocab_size,):
            raise _mismatch(MEMBERS, f"has shape {list(members.shape)}, not {[vocab_size]}")
        if not torch.equal(members.bool().nonzero().flatten(), ids.sort().values):
            raise _mismatch(MEMBERS, f"names other tokens than {OFFSETS}")
    return ids


def offsets_of(token_ids: Tensor) -> Tensor:
    """Returns `d2t` of a list of the target's ids, int64 (Vd,)."""
    return token_ids.long() - torch.arange(token_ids.numel())


def _mismatch(name: str, reason: str) -> MismatchError:
    return MismatchError(f"head tensor {name} {reason}", metadata={"tensor": name})
