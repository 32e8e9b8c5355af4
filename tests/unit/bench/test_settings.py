"""What the modes of a benchmark ask of each other."""

from pathlib import Path
from typing import Any

import pytest

from arborist.cli.bench.contest import MODES, BenchSettings
from arborist.cli.bench.draft_kinds import draft_kind
from arborist.core.errors import InvalidArgumentError
from arborist.core.policy_settings import POLICY_NAMES
from arborist.core.shape import TreeShape

IDS = Path("ids.json")


def settings(*modes: str, **changes: Any) -> BenchSettings:
    """Settings of some modes."""
    return BenchSettings("t", "d", modes, TreeShape(3, 4, 8), 16, "float32", **changes)


@pytest.mark.parametrize(
    ("modes", "changes", "said"),
    [
        (("plain", "frspec"), {}, "--vocabulary-file = unset: must be set for mode frspec"),
        (("eagle2",), {"vocabulary_file": IDS}, "ids.json: must be unset without mode frspec"),
        (("eagle2",), {"vocabulary_size": 5}, "--vocabulary-size = 5: must be unset without"),
    ],
)
def test_a_vocabulary_belongs_to_frspec(
    modes: tuple[str, ...], changes: dict[str, Any], said: str
) -> None:
    """The other modes draft every token, so neither is silently ignored."""
    with pytest.raises(InvalidArgumentError) as caught:
        settings(*modes, **changes)

    assert said in caught.value.message


@pytest.mark.parametrize(
    ("modes", "changes", "said"),
    [
        (("eagle2", "draft_lm_tree"), {}, "--draft-lm = unset: must be set for mode draft_lm_tree"),
        (("eagle2",), {"draft_lm": "m"}, "--draft-lm = m: must be unset without mode"),
    ],
)
def test_a_language_model_belongs_to_its_modes(
    modes: tuple[str, ...], changes: dict[str, Any], said: str
) -> None:
    """A draft that no mode would ask is refused, and a mode without its draft."""
    with pytest.raises(InvalidArgumentError) as caught:
        settings(*modes, **changes)

    assert said in caught.value.message


def test_a_language_model_drafts_as_a_chain_and_as_a_tree() -> None:
    """Both modes ask one worker of their own; the policies are those of the head's modes."""
    chosen = settings("chain", "draft_lm_chain", "draft_lm_tree", draft_lm="m")

    assert type(chosen.policy("draft_lm_chain")) is type(chosen.policy("chain"))
    assert type(chosen.policy("draft_lm_tree")) is type(chosen.policy("eagle2"))
    kinds = {draft_kind(mode) for mode in ("draft_lm_chain", "draft_lm_tree")}
    assert kinds == {"language_model"}


def test_frspec_stands_beside_the_whole_vocabulary() -> None:
    """It is eagle2 with another draft; every policy is a mode too."""
    both = settings("eagle2", "frspec", vocabulary_file=IDS)

    assert type(both.policy("frspec")) is type(both.policy("eagle2"))
    assert (draft_kind("eagle2"), draft_kind("frspec")) == ("head", "frequent")
    assert {*POLICY_NAMES, "frspec"} <= set(MODES)
