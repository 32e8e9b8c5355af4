"""The default pair: the small target and its EAGLE-2 head that come with Arborist."""

from pathlib import Path

from arborist.common.shipped import PACKAGE_ROOT, shipped_path

DEFAULT_PAIR = "models/default"


def default_pair_directory(*, package_root: Path = PACKAGE_ROOT) -> Path:
    """Returns the folder of the default pair, which holds ``target/`` and ``head/``.

    Args:
        package_root: The ``arborist`` folder that holds ``common``; given only by tests.

    Returns:
        Absolute path, inside the installed package or at the root of the clone. ``target/`` is a
        Hugging Face model folder, ``head/`` an EAGLE head in the official format.

    Raises:
        FileNotFoundError: This installation carries no default pair, or only a part of one; the
            message says what is missing and what to give instead.
    """
    advice = "give the paths of a target model and of its EAGLE head in the configuration"
    try:
        directory = shipped_path(DEFAULT_PAIR, package_root=package_root)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {advice}") from None
    for part in ("target", "head"):
        if not (directory / part / "config.json").is_file():
            raise FileNotFoundError(
                f"the default pair at {directory} has no {part}/config.json; {advice}"
            )
    return directory
