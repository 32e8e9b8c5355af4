"""Engines and reference outputs of the golden pair, made once."""

from collections.abc import Callable

import pytest
import torch
from tests.integration.loopback import PAIR, golden_draft, golden_target
from transformers import AutoModelForCausalLM

from arborist.core.engine import DraftEngine, TargetEngine

PROMPTS = (
    (1, 17, 300, 42),
    (9,),
    tuple(5 + 7 * number % 500 for number in range(40)),
)


@pytest.fixture(scope="session")
def target_engine() -> TargetEngine:
    """The golden target; shared, since a deployment leaves nothing in it."""
    torch.set_num_threads(1)
    return golden_target()


@pytest.fixture(scope="session")
def draft_engine() -> DraftEngine:
    """The golden head; shared, since a deployment leaves nothing in it."""
    return golden_draft()


@pytest.fixture(scope="session")
def reference() -> Callable[[tuple[int, ...], int], list[int]]:
    """What transformers' own `generate` says, greedily, ignoring end-of-sequence."""
    model = AutoModelForCausalLM.from_pretrained(PAIR / "target", dtype=torch.float32).eval()
    known: dict[tuple[tuple[int, ...], int], list[int]] = {}

    def generate(prompt: tuple[int, ...], max_tokens: int) -> list[int]:
        if (prompt, max_tokens) not in known:
            ids = torch.tensor([prompt])
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                eos_token_id=None,
                pad_token_id=0,
            )
            known[prompt, max_tokens] = output[0, len(prompt) :].tolist()
        return known[prompt, max_tokens]

    return generate
