"""Where outputs leave plain decoding's, and how close the target's choice was."""

import pytest

from arborist.cli.bench.flips import Flip, Margin, find_flips, flip_figures, flips_line
from arborist.cli.bench.output import Output

PLAIN = [Output([1, 2, 3, 4], 1.0), Output([5, 6, 7], 1.0), Output([8, 9], 1.0)]


def outputs(*token_ids: list[int]) -> list[Output]:
    """Outputs that took no time worth telling."""
    return [Output(tokens, 1.0) for tokens in token_ids]


def test_an_output_flips_once() -> None:
    """Behind its first difference another text is continued; one that ends early has no token."""
    mode = outputs([1, 2, 30, 40], [5, 6], [8, 9])

    assert find_flips(mode, PLAIN) == [Flip(0, 2, 30, 3), Flip(1, 2, None, 7)]


def test_flips_are_counted_over_the_tokens_that_could_differ() -> None:
    """Each has its place, both tokens and both margins; a tie is one by the margin in fp32."""
    mode = outputs([1, 2, 30, 40], [5, 60, 70], [8, 9])
    margins = {(0, 2): Margin(0.0, 0.00009), (1, 1): Margin(0.25, 0.125)}

    figures = flip_figures(mode, PLAIN, margins)

    assert figures["outputs_equal_to_plain"] == 1
    assert figures["flips_per_1000_tokens"] == round(1000 * 2 / 7, 3)
    assert figures["flips"] == {
        "per_1000_tokens": round(1000 * 2 / 7, 3),
        "compared_tokens": 3 + 2 + 2,
        "ties": 1,
        "list": [
            {
                "prompt": 0,
                "position": 2,
                "token": 30,
                "plain_token": 3,
                "margin": 0.0,
                "margin_fp32": 0.00009,
            },
            {
                "prompt": 1,
                "position": 1,
                "token": 60,
                "plain_token": 6,
                "margin": 0.25,
                "margin_fp32": 0.125,
            },
        ],
    }
    line = flips_line("eagle2", figures)
    assert line.startswith("eagle2: 2 flips in 7 tokens, 285.71 per 1,000, 1 ties in fp32")
    assert line.endswith("margin at most 0.25, in fp32 at most 0.125")


def test_a_margin_that_is_not_known_is_said_to_be_so() -> None:
    """Null in the figures, left out of the line, and no tie."""
    figures = flip_figures(outputs([1, 2, 3, 5], [5, 6, 7], [8, 9]), PLAIN, {})

    (flip,) = figures["flips"]["list"]
    assert (flip["margin"], flip["margin_fp32"], figures["flips"]["ties"]) == (None, None, 0)
    assert "margin" not in flips_line("eagle2", figures)


@pytest.mark.parametrize("mode", [PLAIN, outputs([1, 2, 3, 4], [5, 6, 7], [8, 9])])
def test_equal_outputs_have_no_line(mode: list[Output]) -> None:
    """Nothing is printed where nothing differs."""
    figures = flip_figures(mode, PLAIN, {})

    assert figures["flips"]["list"] == []
    assert flips_line("eagle2", figures) == ""
