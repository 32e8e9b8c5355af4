"""Which draft a mode asks, where modes of one benchmark need different ones."""

from __future__ import annotations

from typing import Literal

FRSPEC = "frspec"
"""The mode whose head drafts frequent tokens only (FR-Spec, arXiv 2502.14856)."""

DRAFT_LM_CHAIN = "draft_lm_chain"
DRAFT_LM_TREE = "draft_lm_tree"
DRAFT_LM_MODES = (DRAFT_LM_CHAIN, DRAFT_LM_TREE)
"""Modes with a language model as the draft: the classic chain, and EAGLE-2's tree."""

DraftKind = Literal["head", "frequent", "language_model"]
"""The head over its whole vocabulary, or over the ids of a file, or a language model."""

_POLICIES = {
    "monolith": "eagle2",
    FRSPEC: "eagle2",
    DRAFT_LM_CHAIN: "chain",
    DRAFT_LM_TREE: "eagle2",
}


def draft_kind(mode: str) -> DraftKind:
    """Returns the draft that a mode asks."""
    if mode in DRAFT_LM_MODES:
        return "language_model"
    return "frequent" if mode == FRSPEC else "head"


def policy_of(mode: str) -> str:
    """Returns the name of the policy that a mode runs; that of most is their own."""
    return _POLICIES.get(mode, mode)
