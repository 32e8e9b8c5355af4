"""Shipped files are found in a wheel and in a clone, and nowhere else."""

from pathlib import Path

import pytest

from arborist.common.default_pair import default_pair_directory
from arborist.common.shipped import shipped_path


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The package folder of an installed wheel."""
    root = tmp_path / "lib/site-packages/arborist"
    root.mkdir(parents=True)
    return root


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The root of a clone, with the portion that holds `common`."""
    (tmp_path / "clone/services/arborist").mkdir(parents=True)
    (tmp_path / "clone/pyproject.toml").touch()
    return tmp_path / "clone"


def write_pair(folder: Path, *parts: str) -> Path:
    """Makes the parts of a pair under a folder, each with its configuration."""
    for part in parts:
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
    return folder


def test_a_wheel_carries_its_files_inside_the_package(installed: Path) -> None:
    """In an installed wheel the pair lies in the package."""
    pair = write_pair(installed / "models/default", "target", "head")

    assert default_pair_directory(package_root=installed) == pair


def test_a_clone_keeps_its_files_at_its_root(clone: Path) -> None:
    """In a clone the pair lies where the repository has it."""
    pair = write_pair(clone / "models/default", "target", "head")

    assert default_pair_directory(package_root=clone / "services/arborist") == pair


def test_a_folder_that_is_no_clone_is_not_searched(installed: Path) -> None:
    """Files that happen to lie beside an installed wheel are not taken for ours."""
    outside = installed.parents[1]
    write_pair(outside / "models/default", "target", "head")

    with pytest.raises(FileNotFoundError, match="not shipped with this installation"):
        shipped_path("models/default", package_root=installed)


@pytest.mark.parametrize("present", [(), ("target",), ("head",)])
def test_a_missing_part_is_named_with_advice(installed: Path, present: tuple[str, ...]) -> None:
    """Without a complete pair the error says in one line what to do instead."""
    write_pair(installed / "models/default", *present)

    with pytest.raises(FileNotFoundError, match="give the paths of a target model") as caught:
        default_pair_directory(package_root=installed)

    assert "\n" not in str(caught.value)
