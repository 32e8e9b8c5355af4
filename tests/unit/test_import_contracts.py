"""The import contracts of pyproject.toml refuse what they are meant to refuse.

They run here over a planted tree of empty packages, which lies before the real one on the path;
``make imports`` runs them over the real one.
"""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = REPOSITORY / "pyproject.toml"
SETTINGS = tomllib.loads(CONFIG.read_text(encoding="utf-8"))["tool"]["importlinter"]
HANDWRITTEN_ROOTS = ("services", "orchestrator")

# Importing file, what it says, and the contract that must break.
PLANTED = [
    ("core/tree.py", "from arborist.common import wire", "layers"),
    ("common/wire.py", "import arborist.draft", "layers"),
    ("draft/engine.py", "from arborist.target import engine", "layers"),
    ("target/engine.py", "import arborist.draft.engine", "layers"),
    ("target/engine.py", "import arborist.orchestrator", "layers"),
    ("orchestrator/loop.py", "from arborist.draft import engine", "layers"),
    ("orchestrator/loop.py", "import arborist.cli", "layers"),
    ("client/sync.py", "import arborist.orchestrator", "layers"),
    ("training/head.py", "import arborist.orchestrator", "training"),
    ("core/tree.py", "import grpc", "core-pure"),
    ("core/tree.py", "from google.protobuf import message", "core-pure"),
    ("core/tree.py", "import arborist.v1.common_pb2", "core-pure"),
    ("core/tree.py", "import ray", "ray-wiring"),
    ("orchestrator/loop.py", "import ray", "ray-wiring"),
    ("target/engine.py", "def f():\n    from ray import serve", "ray-wiring"),
    ("cli/main.py", "import ray.serve", "ray-wiring"),
]


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    """Runs the repository's contracts over a planted tree."""
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as run; run()",
    ]
    command += ["--config", str(CONFIG), "--no-cache", "--no-logo"]
    environment = {**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "200"}
    return subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Every root package, with the modules that the plants import and the allowed Ray wiring."""
    for package in SETTINGS["root_packages"]:
        folder = tmp_path.joinpath(*package.split("."))
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        for module in ("engine.py", "wire.py", "common_pb2.py"):
            (folder / module).touch()
    (tmp_path / "arborist/orchestrator/app.py").write_text("import ray\nfrom ray import serve\n")
    (tmp_path / "arborist/cli/serve.py").write_text("import arborist.orchestrator.app\n")
    (tmp_path / "arborist/common/wire.py").write_text("import arborist.core\nimport arborist.v1\n")
    (tmp_path / "arborist/training/run.py").write_text("import arborist.draft, arborist.target\n")
    return tmp_path


def test_the_intended_imports_keep_every_contract(tree: Path) -> None:
    """The layering as designed, the Ray wiring included, passes."""
    run = lint(tree)

    assert run.returncode == 0, run.stdout + run.stderr
    assert f"Contracts: {len(SETTINGS['contracts'])} kept, 0 broken." in run.stdout


@pytest.mark.parametrize(("path", "source", "contract"), PLANTED)
def test_a_planted_import_breaks_its_contract(
    tree: Path, path: str, source: str, contract: str
) -> None:
    """A forbidden import breaks the contract that speaks about it."""
    (tree / "arborist" / path).write_text(source + "\n", encoding="utf-8")
    names = {one["id"]: one["name"] for one in SETTINGS["contracts"]}

    run = lint(tree)

    assert run.returncode != 0, run.stdout + run.stderr
    assert f"{names[contract]} BROKEN" in run.stdout


def test_every_package_is_under_contract() -> None:
    """A package that the contracts do not name would be free to import anything."""
    packages = {
        f"arborist.{folder.name}"
        for root in HANDWRITTEN_ROOTS
        for folder in (REPOSITORY / root / "arborist").iterdir()
        if folder.is_dir() and any(folder.rglob("*.py"))
    }

    assert packages <= set(SETTINGS["root_packages"])
