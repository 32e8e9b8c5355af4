"""What the flags of a command that loads models in this process make of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from arborist.cli.dtype_names import DTYPE_NAMES

if TYPE_CHECKING:
    from arborist.common.config import ArboristConfig


def model_settings(
    target: str | None,
    draft: str | None,
    device: str | None,
    dtype: str | None,
    config: Path | None,
    *,
    missing_draft: str | None = "--target needs its --draft",
) -> ArboristConfig:
    """Returns the configuration with both models as the flags name them.

    Args:
        target: Folder or hub name; None = as configured.
        draft: The same of its head or language model.
        device: cpu or cuda:N, of both.
        dtype: Short name of the element type of both.
        config: YAML file; None = defaults and environment.
        missing_draft: What to say of a target without its draft; None = it needs none.
    Raises:
        typer.BadParameter: Another dtype, or a target without the draft it needs.
        ConfigError: The configuration cannot be used.
    """
    from arborist.common.config import load_config

    if dtype is not None and dtype not in DTYPE_NAMES:
        raise typer.BadParameter(f"--dtype: must be one of {', '.join(DTYPE_NAMES)}")
    if missing_draft is not None and target is not None and draft is None and config is None:
        raise typer.BadParameter(missing_draft)
    name = DTYPE_NAMES[dtype] if dtype is not None else None
    flags = {"target.model": target, "draft.model": draft}
    for section in ("target", "draft"):
        flags |= {f"{section}.device": device, f"{section}.dtype": name}
    return load_config(config, flags)
