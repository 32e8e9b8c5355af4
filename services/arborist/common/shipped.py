"""Where the files shipped beside the code lie, in an installed wheel and in a clone."""

from pathlib import Path

PACKAGE_ROOT = Path(__file__).resolve().parents[1]


def shipped_path(relative: str, *, package_root: Path = PACKAGE_ROOT) -> Path:
    """Returns the file or folder that is shipped under a repository-relative name.

    The wheel carries such files inside the package (``arborist/models/default``); a clone, which is
    what an editable install points to, keeps them at the repository's root (``models/default``).

    Args:
        relative: Name relative to the repository's root, with forward slashes, for example
            ``"models/default"`` or ``"deploy/ray/local.yaml"``.
        package_root: The ``arborist`` folder that holds ``common``; given only by tests.

    Returns:
        The absolute path of the existing file or folder.

    Raises:
        FileNotFoundError: Neither place has it; the message names both.
    """
    installed = package_root / relative
    if installed.exists():
        return installed
    clone = package_root.parents[1]
    in_clone = clone / relative
    # Without the marker a wheel in some `lib/python3.11/` would look outside its own folder.
    if (clone / "pyproject.toml").is_file() and in_clone.exists():
        return in_clone
    raise FileNotFoundError(
        f"{relative} is not shipped with this installation: looked at {installed} and {in_clone}"
    )
