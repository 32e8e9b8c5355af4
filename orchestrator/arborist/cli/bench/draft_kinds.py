"""Which draft a mode asks, where modes of one benchmark need different ones."""

from __future__ import annotations

from typing import Literal

FRSPEC = "frspec"
"""The mode whose head drafts frequent tokens only (FR-Spec, arXiv 2502.14856)."""

DraftKind = Literal["head", "frequent"]
"""The head over its whole vocabulary, or over the ids of a file."""


def draft_kind(mode: str) -> DraftKind:
    """Returns the draft that a mode asks."""
    return "frequent" if mode == FRSPEC else "head"


def policy_of(mode: str) -> str:
    """Returns the name of the policy that a mode runs; that of most is their own."""
    return "eagle2" if mode in ("monolith", FRSPEC) else mode
