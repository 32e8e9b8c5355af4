"""How long prompts and outputs are."""

import pytest

from arborist.orchestrator.session_lengths import SessionLengths


def test_what_many_sessions_had_is_what_is_expected() -> None:
    """The first guess is forgotten, and so are old sessions."""
    lengths = SessionLengths()
    assert lengths.output_tokens > 100

    for prompt, output in ((500, 10), (40, 24)):
        for _ in range(400):
            lengths.began(prompt)
            for _ in range(output // 2):
                lengths.decoded(2)

    assert lengths.output_tokens == pytest.approx(24, rel=0.05)
    assert lengths.prompt_tokens == pytest.approx(40, rel=0.05)


def test_sessions_that_have_brought_nothing_yet_are_no_division_by_zero() -> None:
    """A thousand may wait for their first token."""
    lengths = SessionLengths()
    for _ in range(1000):
        lengths.began(10)

    assert lengths.output_tokens >= 1
