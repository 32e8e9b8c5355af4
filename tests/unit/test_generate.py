"""The stub generator: what it writes is what is committed, and it sees every kind of difference."""

from pathlib import Path

import pytest
from protos import generate


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A freshly generated stub tree."""
    folder = tmp_path / "fresh"
    folder.mkdir()
    generate.generate(folder)
    return folder


def test_the_committed_stubs_are_fresh(fresh: Path) -> None:
    """Generating again gives the committed files, byte for byte."""
    assert generate.differences(fresh, generate.GENERATED_ROOT) == []


def test_every_difference_is_named(fresh: Path, tmp_path: Path) -> None:
    """A changed, a missing and a left-over file are told apart; installing mends all three."""
    committed = tmp_path / "committed"
    generate.install(fresh, committed)
    package = committed / "arborist/v1"
    (package / "common_pb2.py").write_text("# edited\n")
    (package / "draft_pb2.pyi").unlink()
    (package / "gone_pb2.py").touch()

    assert generate.differences(fresh, committed) == [
        "stale: arborist/v1/common_pb2.py",
        "missing: arborist/v1/draft_pb2.pyi",
        "left over: arborist/v1/gone_pb2.py",
    ]

    generate.install(fresh, committed)

    assert generate.differences(fresh, committed) == []


def test_other_tools_are_refused() -> None:
    """A generator of another version, or without a pin, is named with both versions."""
    pinned = generate.CONSTRAINTS.read_text()

    assert generate.wrong_tools(pinned) == []
    assert len(generate.wrong_tools("grpcio-tools==1.0.0\n")) == len(generate.PINNED_TOOLS)
    assert "must be 1.0.0, found" in generate.wrong_tools("grpcio-tools==1.0.0\n")[0]
