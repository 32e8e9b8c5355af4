"""The tokenizer of a target."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from arborist.core.errors import InvalidArgumentError


def load_tokenizer(target: str | Path) -> PreTrainedTokenizerFast:
    """Load a target's tokenizer.

    Args:
        target: folder or hub name.
    Raises:
        InvalidArgumentError: it has none, or one that cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(str(target), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InvalidArgumentError(
            "target", target, f"a model with a tokenizer ({reason})"
        ) from None
