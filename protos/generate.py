"""Generates the Python stubs of every contract: the only way to change ``protos/gen``.

Run ``make proto`` to write them and ``make stubs`` to learn whether the committed ones are what the
contracts say. The tools are pinned in ``constraints.txt``; other versions are refused, because
another generator writes other files.
"""

import argparse
import filecmp
import importlib.metadata
import shutil
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

PROTO_ROOT = Path(__file__).resolve().parent
GENERATED_ROOT = PROTO_ROOT / "gen"
CONSTRAINTS = PROTO_ROOT.parent / "constraints.txt"
PINNED_TOOLS = ("grpcio-tools", "mypy-protobuf")
PACKAGE_DOCSTRING = '"""Generated from protos/{package}; never edited by hand."""\n'


def wrong_tools(constraints: str) -> list[str]:
    """Compares the installed generators with their pins.

    Args:
        constraints: Text of the constraints file, one ``name==version`` a line.

    Returns:
        One sentence per generator that is missing or of another version; empty when all fit.
    """
    pins = dict(line.split("==", 1) for line in constraints.splitlines() if "==" in line)
    complaints = []
    for tool in PINNED_TOOLS:
        try:
            installed = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            installed = "not installed"
        if installed != pins.get(tool):
            complaints.append(f"{tool} must be {pins.get(tool)}, found {installed}")
    return complaints


def generate(destination: Path) -> None:
    """Writes the stubs of all contracts.

    Args:
        destination: Existing folder that becomes the import root; the files land in
            ``arborist/v1/`` under it, as the proto package says.

    Raises:
        RuntimeError: There is no contract, or the compiler refused one; it has printed why.
    """
    sources = sorted((PROTO_ROOT / "arborist").rglob("*.proto"))
    if not sources:
        raise RuntimeError(f"no .proto file under {PROTO_ROOT / 'arborist'}")
    well_known_types = Path(grpc_tools.__file__).parent / "_proto"
    arguments = [
        "protoc",
        f"--proto_path={PROTO_ROOT}",
        f"--proto_path={well_known_types}",
        f"--plugin=protoc-gen-mypy_grpc={Path(sys.executable).parent / 'protoc-gen-mypy_grpc'}",
        f"--python_out={destination}",
        f"--pyi_out={destination}",
        f"--grpc_python_out={destination}",
        f"--mypy_grpc_out=quiet:{destination}",
        *(str(source.relative_to(PROTO_ROOT)) for source in sources),
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("the protocol compiler failed")
    for package in sorted({source.parent.relative_to(PROTO_ROOT) for source in sources}):
        # The version folder is a regular package; `arborist` above it stays a namespace.
        docstring = PACKAGE_DOCSTRING.format(package=package.as_posix())
        (destination / package / "__init__.py").write_text(docstring, encoding="utf-8")
        (destination / package / "py.typed").touch()


def differences(expected: Path, actual: Path) -> list[str]:
    """Lists the files in which two stub trees differ.

    Args:
        expected: Freshly generated tree.
        actual: Committed tree; may be absent.

    Returns:
        One line per file that is stale, missing or left over, in order of path.
    """
    wanted = {path.relative_to(expected) for path in expected.rglob("*") if path.is_file()}
    present = {
        path.relative_to(actual)
        for path in actual.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    lines = []
    for path in sorted(wanted | present):
        if path not in present:
            lines.append(f"missing: {path.as_posix()}")
        elif path not in wanted:
            lines.append(f"left over: {path.as_posix()}")
        elif not filecmp.cmp(expected / path, actual / path, shallow=False):
            lines.append(f"stale: {path.as_posix()}")
    return lines


def install(fresh: Path, destination: Path) -> None:
    """Makes a stub tree equal to a fresh one.

    Args:
        fresh: Freshly generated tree.
        destination: Tree to change; files that no contract gives any more are removed.
    """
    for path in destination.rglob("*"):
        if path.is_file() and not (fresh / path.relative_to(destination)).is_file():
            path.unlink()
    shutil.copytree(fresh, destination, dirs_exist_ok=True)


def main() -> int:
    """Runs the command line.

    Returns:
        0 when the stubs were written or are fresh, 1 otherwise.
    """
    parser = argparse.ArgumentParser(description="Generate the Python stubs of the contracts.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if stale")
    check: bool = parser.parse_args().check
    complaints = wrong_tools(CONSTRAINTS.read_text(encoding="utf-8"))
    if complaints:
        print("\n".join(complaints), file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        try:
            generate(fresh)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        if not check:
            install(fresh, GENERATED_ROOT)
            return 0
        lines = differences(fresh, GENERATED_ROOT)
    if lines:
        print("\n".join([*lines, "the stubs are not fresh: run `make proto`"]), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
