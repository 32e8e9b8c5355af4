"""Rules about the source itself, checked over the syntax trees of everything that is shipped.

Every rule has planted sources that it must refuse and innocent ones that it must let pass, so that
a rule that has stopped seeing anything fails here.
"""

import ast
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = (REPOSITORY / "services", REPOSITORY / "orchestrator")

# Reads untrusted bytes as code. Only what makes a checkpoint may do so, never what serves one.
UNSAFE_LOADERS = (
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "numpy.load",
    "pickle",
    "shelve",
    "torch.hub",
    "torch.jit.load",
    "torch.load",
    "yaml.full_load",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
)
ENVIRONMENT = ("os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv")
# Files that hold the mapping between the wire and our own types.
WIRE_STEMS = ("wire", "servicer", "link", "links", "server")


def ray_wiring() -> list[str]:
    """Names the modules that may import Ray."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (allowed,) = [one["ignore_imports"] for one in contracts if one["id"] == "ray-wiring"]
    return [edge.partition(" -> ")[0] for edge in allowed]


@dataclass(frozen=True)
class Module:
    """One source file: dotted name and syntax tree."""

    name: str
    tree: ast.Module

    def is_in(self, *packages: str) -> bool:
        """Says whether the module is one of the packages or lies in one."""
        return any(self.name == one or self.name.startswith(f"{one}.") for one in packages)

    @property
    def stem(self) -> str:
        """Last part of the name."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Reference:
    """A dotted name of something outside the module, as far as its imports tell."""

    line: int
    name: str
    imported: bool

    def is_in(self, *names: str) -> bool:
        """Says whether the reference is one of the names or lies under one."""
        return any(self.name == one or self.name.startswith(f"{one}.") for one in names)


def imports(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Yields line, full name and local name of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.partition(".")[0]
                full = alias.name if alias.asname else local
                yield node.lineno, alias.name, local
                if full != alias.name:
                    yield node.lineno, full, local
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}", alias.asname or alias.name
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            first = node.args[0]
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value), ""


def references(module: Module) -> list[Reference]:
    """Lists what a module imports and what it reaches through those names."""
    found = []
    local_names: dict[str, str] = {}
    for line, full, local in imports(module.tree):
        found.append(Reference(line, full, imported=True))
        # The shortest name wins: `import a.b` binds `a`.
        if local and len(full) <= len(local_names.get(local, full)):
            local_names[local] = full
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            root, _, rest = ast.unparse(node).partition(".")
            if root in local_names:
                found.append(Reference(node.lineno, f"{local_names[root]}.{rest}", imported=False))
    return found


def makes_checkpoints(module: Module) -> bool:
    """Says whether a module makes or converts checkpoints, outside the serving path."""
    return module.is_in("arborist.training", "arborist.draft.import_head")


def unsafe_loading(module: Module) -> list[int]:
    """Lines that read bytes as code in the serving path."""
    lines = [
        node.lineno
        for node in ast.walk(module.tree)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("eval", "exec")
        )
        or (
            isinstance(node, ast.keyword)
            and node.arg in ("trust_remote_code", "allow_pickle")
            and not (isinstance(node.value, ast.Constant) and node.value.value is False)
        )
    ]
    if not makes_checkpoints(module):
        lines += [one.line for one in references(module) if one.is_in(*UNSAFE_LOADERS)]
    return lines


def environment_reads(module: Module) -> list[int]:
    """Lines that touch the environment outside a configuration module."""
    if module.stem == "config" or module.stem.endswith("_config"):
        return []
    return [one.line for one in references(module) if one.is_in(*ENVIRONMENT)]


def ray_outside_wiring(module: Module) -> list[int]:
    """Lines that import Ray outside the wiring."""
    if module.is_in(*ray_wiring()):
        return []
    return [one.line for one in references(module) if one.imported and one.is_in("ray")]


def worker_imports(module: Module) -> list[int]:
    """Lines in which a worker knows Ray, the other worker, or who calls it."""
    forbidden = {
        "arborist.draft": "arborist.target",
        "arborist.target": "arborist.draft",
    }
    for worker, other in forbidden.items():
        if module.is_in(worker):
            names = ("ray", "arborist.cli", "arborist.client", "arborist.orchestrator", other)
            return [one.line for one in references(module) if one.imported and one.is_in(*names)]
    return []


def stubs_outside_wire(module: Module) -> list[int]:
    """Lines that see generated messages where our own types belong."""
    if module.is_in("arborist.client") or module.stem.rpartition("_")[2] in WIRE_STEMS:
        return []
    return [one.line for one in references(module) if one.imported and one.is_in("arborist.v1")]


def asserts(module: Module) -> list[int]:
    """Lines with an ``assert``: a check that ``python -O`` removes is none."""
    return [node.lineno for node in ast.walk(module.tree) if isinstance(node, ast.Assert)]


RULES: dict[str, Callable[[Module], list[int]]] = {
    "asserts": asserts,
    "environment_reads": environment_reads,
    "ray_outside_wiring": ray_outside_wiring,
    "stubs_outside_wire": stubs_outside_wire,
    "unsafe_loading": unsafe_loading,
    "worker_imports": worker_imports,
}

# Rule, name of the planted module, source that the rule must refuse.
REFUSED = [
    ("asserts", "arborist.core.tree", "def f(x):\n    assert x > 0"),
    ("environment_reads", "arborist.draft.engine", "import os\nos.environ['X']"),
    ("environment_reads", "arborist.draft.engine", "import os as o\nx = o.getenv('X')"),
    ("environment_reads", "arborist.cli.main", "from os import environ"),
    ("environment_reads", "arborist.cli.main", "def f():\n    import os\n    return os.environ"),
    ("ray_outside_wiring", "arborist.orchestrator.controller", "import ray"),
    ("ray_outside_wiring", "arborist.orchestrator", "import ray"),
    ("ray_outside_wiring", "arborist.orchestrator.application", "import ray"),
    ("ray_outside_wiring", "arborist.cli.main", "def f():\n    from ray import serve"),
    ("ray_outside_wiring", "arborist.client.app", "import ray.serve as serve"),
    ("ray_outside_wiring", "arborist.common.x", "import importlib\nimportlib.import_module('ray')"),
    ("stubs_outside_wire", "arborist.target.engine", "from arborist.v1 import target_pb2"),
    ("stubs_outside_wire", "arborist.orchestrator.session", "import arborist.v1.draft_pb2 as pb"),
    ("unsafe_loading", "arborist.common.causal_model", "import pickle"),
    ("unsafe_loading", "arborist.common.causal_model", "from pickle import loads"),
    ("unsafe_loading", "arborist.common.wire", "import cloudpickle as cp"),
    ("unsafe_loading", "arborist.draft.checkpoint", "import torch\ntorch.load('x')"),
    ("unsafe_loading", "arborist.draft.checkpoint", "import torch as t\nf = t.load"),
    ("unsafe_loading", "arborist.draft.checkpoint", "from torch import load"),
    ("unsafe_loading", "arborist.cli.import_head", "import torch\ntorch.load('x')"),
    ("unsafe_loading", "arborist.draft.import_heads", "import torch\ntorch.load('x')"),
    ("unsafe_loading", "arborist.common.config", "import yaml\nyaml.load('x', yaml.Loader)"),
    ("unsafe_loading", "arborist.common.config", "eval('1')"),
    ("unsafe_loading", "arborist.training.head", "exec('1')"),
    ("unsafe_loading", "arborist.common.causal_model", "load('x', trust_remote_code=True)"),
    ("unsafe_loading", "arborist.common.causal_model", "load('x', trust_remote_code=flag)"),
    ("worker_imports", "arborist.draft.engine", "from arborist.target import kv"),
    ("worker_imports", "arborist.target.engine", "import arborist.draft.head"),
    ("worker_imports", "arborist.target.__main__", "from arborist import draft"),
    ("worker_imports", "arborist.target.servicer", "import ray"),
    ("worker_imports", "arborist.draft.servicer", "from arborist.orchestrator import session"),
]

# Rule, name of the planted module, source that the rule must let pass.
ALLOWED = [
    ("environment_reads", "arborist.common.config", "import os\nos.environ['X']"),
    ("environment_reads", "arborist.draft.engine", "import os\nos.cpu_count()"),
    ("ray_outside_wiring", "arborist.orchestrator.app", "import ray"),
    ("ray_outside_wiring", "arborist.orchestrator.app_directory", "from ray import serve"),
    ("ray_outside_wiring", "arborist.core.tree", "import array\nfrom arborist.core import ray_x"),
    ("stubs_outside_wire", "arborist.common.wire", "from arborist.v1 import common_pb2"),
    ("stubs_outside_wire", "arborist.target.servicer", "from arborist.v1 import target_pb2"),
    ("stubs_outside_wire", "arborist.orchestrator.draft_link", "import arborist.v1.draft_pb2"),
    ("unsafe_loading", "arborist.training.run", "import torch\ntorch.load('x')"),
    ("unsafe_loading", "arborist.draft.import_head", "import torch\ntorch.load('x')"),
    ("unsafe_loading", "arborist.common.causal_model", "model.eval()\nself.load('x')"),
    ("unsafe_loading", "arborist.common.causal_model", "load('x', trust_remote_code=False)"),
    ("unsafe_loading", "arborist.common.config", "import yaml\nyaml.safe_load('x')"),
    ("worker_imports", "arborist.cli.main", "import arborist.draft\nimport arborist.target"),
    ("worker_imports", "arborist.draft.engine", "from arborist.core import target"),
]


def shipped_modules() -> list[Module]:
    """Parses every source file under the handwritten roots."""
    modules = []
    for root in ROOTS:
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            modules.append(Module(name, ast.parse(path.read_text(encoding="utf-8"))))
    return modules


@pytest.mark.parametrize("rule", sorted(RULES))
def test_the_source_keeps_the_rule(rule: str) -> None:
    """No shipped module breaks the rule."""
    modules = shipped_modules()
    broken = [f"{module.name}:{line}" for module in modules for line in RULES[rule](module)]

    assert len(modules) > 10
    assert broken == []


@pytest.mark.parametrize(("rule", "name", "source"), REFUSED)
def test_a_planted_violation_is_refused(rule: str, name: str, source: str) -> None:
    """The rule sees the violation in whatever form it is written."""
    assert RULES[rule](Module(name, ast.parse(source))) != []


@pytest.mark.parametrize(("rule", "name", "source"), ALLOWED)
def test_an_innocent_source_passes(rule: str, name: str, source: str) -> None:
    """The rule refuses nothing that is allowed."""
    assert RULES[rule](Module(name, ast.parse(source))) == []


def test_every_rule_has_planted_violations() -> None:
    """A rule without a planted violation could be blind."""
    assert {rule for rule, _, _ in REFUSED} == set(RULES)
