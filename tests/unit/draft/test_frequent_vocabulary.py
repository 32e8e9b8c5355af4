"""FR-Spec: the head's log-probs over the kept ids alone, mapped back to the target's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from arborist.core.engine import DraftOpen, Extend
from arborist.core.errors import InvalidArgumentError
from arborist.core.noise_aim import NoiseAim
from arborist.core.sampling import token_noise
from arborist.core.tree import Level
from arborist.draft.engine import load_draft

PAIR = Path(__file__).resolve().parents[2] / "golden" / "eagle2"
SESSION = ("test", "s")


def first_level(token_ids: list[int] | None, top_k: int, aim: NoiseAim | None = None) -> Level:
    """Level 1 of the golden head after three fixed pairs."""
    engine = load_draft(
        PAIR / "eagle_head",
        PAIR / "target",
        device="cpu",
        dtype="float32",
        kv_capacity_tokens=1024,
        token_ids=token_ids,
    )
    engine.open(SESSION, DraftOpen(max_length=16, aim=aim))
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, engine.feature_width, generator=generator)
    (level,) = engine.run([Extend(SESSION, 0, [5, 6, 7], features, top_k)])
    assert isinstance(level, Level), level
    return level


def test_probabilities_are_the_whole_heads_renormalised() -> None:
    """The softmax runs over the kept ids: the same ratios, another sum."""
    whole = first_level(None, 32)
    kept = whole.tokens[0, ::4].tolist()  # Eight of the likely ones.
    part = first_level(kept, 8)
    assert part.tokens[0].tolist() == kept
    assert np.exp(part.logprobs.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)
    gaps = part.logprobs[0] - whole.logprobs[0, ::4]
    assert np.ptp(gaps) < 1e-5


def test_noise_belongs_to_the_targets_id() -> None:
    """An aimed head adds to a kept id the noise of the id, not of its place in the list."""
    aim = NoiseAim(6, 1.0)
    whole = first_level(None, 32)
    kept = whole.tokens[0, ::4].tolist()
    part = first_level(kept, 8, aim)
    # Three pairs: tokens 0 to 3 are known, the next one is token 4.
    noise = token_noise(6, 4, torch.tensor(kept))
    expected = (torch.from_numpy(whole.logprobs[0, ::4]) + noise).log_softmax(-1)
    values, order = expected.sort(descending=True)
    assert part.tokens[0].tolist() == [kept[place] for place in order]
    np.testing.assert_allclose(part.logprobs[0], values.numpy(), atol=1e-5)


def test_every_id_in_another_order_changes_nothing() -> None:
    """A list of all ids is the whole vocabulary."""
    whole, part = first_level(None, 10), first_level(list(range(511, -1, -1)), 10)
    assert part.tokens.tolist() == whole.tokens.tolist()
    np.testing.assert_allclose(part.logprobs, whole.logprobs, atol=1e-5)


def test_more_children_than_ids_are_refused() -> None:
    """The limit is the draft vocabulary's size."""
    with pytest.raises(AssertionError, match=r"top_k = 3: must be in \[1, 2\]"):
        first_level([4, 5], 3)


def test_ids_outside_of_the_target_are_refused() -> None:
    """The message names the place in the list."""
    with pytest.raises(InvalidArgumentError, match=r"vocabulary_file\[1\] = 512: .*\[0, 512\)"):
        first_level([3, 512], 2)
