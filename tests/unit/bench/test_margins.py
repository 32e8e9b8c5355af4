"""Margins are those of plain decoding: the prompt in chunks, then one row after the other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from arborist.cli.bench.contest import BenchSettings
from arborist.cli.bench.margins import measure_margins, plain_margins
from arborist.cli.bench.output import Output
from arborist.core.shape import TreeShape
from arborist.target.engine import HfTargetEngine, load_target

TARGET = Path(__file__).resolve().parents[2] / "golden" / "eagle2" / "target"
PROMPT = [1, 17, 300, 42]
TOKENS = [7, 99, 7, 12, 400]  # Nothing the model would say.
SETTINGS = BenchSettings(
    target=str(TARGET),
    draft="",
    modes=("plain",),
    shape=TreeShape(),
    max_tokens=8,
    dtype="bfloat16",
    kv_capacity_tokens=64,
)


@pytest.fixture(scope="module")
def engine() -> HfTargetEngine:
    """The golden target in fp32."""
    return load_target(TARGET, device="cpu", dtype="float32", kv_capacity_tokens=64)


def expected_margins(dtype: torch.dtype) -> list[float]:
    """Returns the gaps of the two best logits, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(TARGET, dtype=dtype).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPT + TOKENS])).logits[0, len(PROMPT) - 1 :].float()
    best = logits.topk(2, dim=-1).values  # [tokens + 1, 2]
    return (best[:, 0] - best[:, 1]).tolist()


def test_margins_follow_the_tokens_that_are_given(engine: HfTargetEngine) -> None:
    """Position 0 is the prefill's token; forced tokens are fed, not the target's own."""
    margins = plain_margins(engine, PROMPT, TOKENS, len(TOKENS))

    assert margins == pytest.approx(expected_margins(torch.float32), abs=1e-4)
    assert plain_margins(engine, PROMPT, TOKENS, 0) == margins[:1]
    assert engine.kv_reserved_tokens == 0


def test_each_place_has_a_margin_in_its_own_dtype_and_in_fp32() -> None:
    """Rounding moves the one in bf16; the one in fp32 tells how close it really was."""
    plain = [Output([1, 2], 1.0), Output(TOKENS, 1.0)]
    margins = measure_margins(SETTINGS, [[5], PROMPT], plain, [(1, 4), (1, 2), (1, 4)])
    expected = expected_margins(torch.float32)

    assert set(margins) == {(1, 2), (1, 4)}
    for (_, position), margin in margins.items():
        assert margin.fp32 == pytest.approx(expected[position], abs=1e-4)
        assert margin.own == pytest.approx(expected[position], abs=0.1)
        assert margin.own != margin.fp32


def test_in_fp32_both_margins_are_one() -> None:
    """The model is loaded once."""
    plain = [Output(TOKENS, 1.0)]
    (margin,) = measure_margins(
        replace(SETTINGS, dtype="float32"), [PROMPT], plain, [(0, 3)]
    ).values()

    assert margin.own == margin.fp32 == pytest.approx(expected_margins(torch.float32)[3], abs=1e-4)


def test_figures_are_not_lost_with_the_margins(caplog: pytest.LogCaptureFixture) -> None:
    """A target that cannot be loaded once more costs the margins only, and that is logged."""
    gone = replace(SETTINGS, target=str(TARGET / "gone"))
    margins = measure_margins(gone, [PROMPT], [Output(TOKENS, 1.0)], [(0, 3)])

    assert (margins[0, 3].own, margins[0, 3].fp32) == (None, None)
    assert "no margins in bfloat16" in caplog.text
    assert measure_margins(gone, [PROMPT], [Output(TOKENS, 1.0)], []) == {}
