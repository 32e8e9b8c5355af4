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


def test_frspec_stands_beside_the_whole_vocabulary() -> None:
    """It is eagle2 with another draft; every policy is a mode too."""
    both = settings("eagle2", "frspec", vocabulary_file=IDS)

    assert type(both.policy("frspec")) is type(both.policy("eagle2"))
    assert (draft_kind("eagle2"), draft_kind("frspec")) == ("head", "frequent")
    assert {*POLICY_NAMES, "frspec"} <= set(MODES)
