"""One distribution out of three roots: what the wheel carries, and what would break it."""

import email
import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = ("services", "orchestrator", "protos/gen")
SHIPPED = ("models/default", "deploy/ray/local.yaml")
# A wheel without these could not serve from an empty folder.
NEEDED = (
    "arborist/deploy/ray/local.yaml",
    "arborist/models/default/head/config.json",
    "arborist/models/default/target/config.json",
    "arborist/v1/generation_pb2.pyi",
    "arborist/v1/generation_pb2_grpc.py",
    "arborist/v1/py.typed",
)


def package_files() -> set[str]:
    """Names inside the wheel of everything that the roots hold."""
    return {
        path.relative_to(REPOSITORY / root).as_posix()
        for root in ROOTS
        for path in (REPOSITORY / root / "arborist").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def shipped_files() -> set[str]:
    """Names inside the wheel of the files shipped beside the code."""
    paths = [REPOSITORY / name for name in SHIPPED]
    files = [one for path in paths for one in (path.rglob("*") if path.is_dir() else [path])]
    return {
        f"arborist/{path.relative_to(REPOSITORY).as_posix()}" for path in files if path.is_file()
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree, built with the installed backend: nothing is downloaded."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    run = subprocess.run(
        [*command, str(REPOSITORY)], capture_output=True, text=True, check=False, cwd=folder
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.parametrize("root", ROOTS)
def test_no_root_hides_the_others(root: str) -> None:
    """One `__init__.py` directly in an `arborist/` would hide the other portions."""
    assert (REPOSITORY / root / "arborist").is_dir()
    assert not (REPOSITORY / root / "arborist/__init__.py").exists()


def test_no_file_lies_in_two_roots() -> None:
    """A module that two roots define would be found in one of them only."""
    packages = [
        {
            folder.name
            for folder in (REPOSITORY / root / "arborist").iterdir()
            if any(folder.rglob("*.py"))
        }
        for root in ROOTS
    ]

    assert sum(len(one) for one in packages) == len(set.union(*packages))


def test_every_package_is_typed() -> None:
    """Each package says that its types can be relied on."""
    packages = [
        folder
        for root in ROOTS
        for folder in (REPOSITORY / root / "arborist").iterdir()
        if (folder / "__init__.py").exists()
    ]

    assert packages
    assert [folder.name for folder in packages if not (folder / "py.typed").exists()] == []


def test_the_wheel_carries_everything(wheel: Path) -> None:
    """Every portion, the stubs and the shipped files are in the wheel, and nothing else is."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    assert [name for name in NEEDED if name not in names] == []
    assert names == package_files() | shipped_files()


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel installed by pip into a folder of its own; its dependencies are there already."""
    folder = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check"]
    run = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(folder), str(wheel)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def run_installed(site: Path, folder: Path, *arguments: str) -> str:
    """Runs Python in an empty folder, with the wheel as the only Arborist; returns stdout."""
    # -S leaves out the .pth file of the editable install, hence the clone.
    path = f"{site}:{sysconfig.get_path('purelib')}:{sysconfig.get_path('platlib')}"
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=folder,
        env={**environment, "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_wheel_describes_itself(wheel: Path) -> None:
    """Whoever finds the package reads the README, what it needs and under which licence it is."""
    archive = zipfile.ZipFile(wheel)
    (name,) = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
    text = archive.read(name).decode()
    metadata = email.message_from_string(text)

    assert metadata["Description-Content-Type"] == "text/markdown"
    assert text.endswith((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert metadata["License-Expression"] == "Apache-2.0"
    # The sources of the pair that the wheel carries must be named wherever it goes.
    assert metadata.get_all("License-File") == ["LICENSE", "models/NOTICE"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Keywords"]


def test_the_wheel_works_without_the_clone(site: Path, tmp_path: Path) -> None:
    """Installed into an empty folder, it imports and finds the default pair inside itself."""
    code = (
        "import arborist.v1.generation_pb2_grpc\n"
        "from arborist.common.default_pair import default_pair_directory\n"
        "from arborist.common.shipped import shipped_path\n"
        "print(default_pair_directory())\n"
        "print(shipped_path('deploy/ray/local.yaml'))\n"
    )

    assert run_installed(site, tmp_path, "-c", code).split() == [
        str(site / "arborist/models/default"),
        str(site / "arborist/deploy/ray/local.yaml"),
    ]


def test_the_installed_command_generates_with_its_own_pair(site: Path, tmp_path: Path) -> None:
    """`arborist generate --local` in an empty folder decodes with what the wheel carries."""
    command = ["generate", "--local", "--max-tokens", "12", "--ignore-eos", "--json", "--chat"]
    arborist = str(site / "bin/arborist")
    answer = json.loads(run_installed(site, tmp_path, arborist, *command, "What is a mutex?"))

    assert answer["usage"]["completion_tokens"] == len(answer["token_ids"]) == 12
    assert answer["speculation"]["draft_tokens"] > 0
    assert answer["text"]
    assert list(tmp_path.iterdir()) == []
