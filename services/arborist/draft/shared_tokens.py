"""Whether a draft's tokens are the target's: ids are all that crosses between them."""

from __future__ import annotations

from transformers import AutoTokenizer

from arborist.core.errors import MismatchError
from arborist.draft.target_facts import TargetFacts, first_line, read_text_config


def check_shared_tokens(source: str, revision: str | None, target: TargetFacts) -> None:
    """Refuses a draft whose tokens differ from the target's.

    Sizes may differ when both tokenizers show that the difference is padding: each id that both
    know is the same token, and the target's tokenizer has no id that the draft cannot be fed.

    Args:
        source: Folder or hub name of the draft.
        revision: Branch, tag or commit of a hub name.
        target: Its target.
    Raises:
        MismatchError: One line that says what differs, or what cannot be read.
    """
    size = read_text_config(source, revision).vocab_size
    ours, theirs = _tokens(source, revision), _tokens(target.source, target.revision)
    if ours is None or theirs is None:
        if size != target.vocab_size:
            raise MismatchError(
                f"draft {source} has vocab_size {size}, the target {target.vocab_size}, and no "
                "tokenizer of both shows that the difference is padding"
            )
        if ours is not None or theirs is not None:
            without = f"draft {source}" if ours is None else f"target {target.source}"
            raise MismatchError(
                f"{without} has no tokenizer that can be read: its tokens cannot be compared"
            )
        return
    for token_id in sorted(ours.keys() & theirs.keys()):
        if ours[token_id] != theirs[token_id]:
            raise MismatchError(
                f"draft {source} has another tokenizer than the target: id {token_id} is "
                f"{ours[token_id]!r}, the target's is {theirs[token_id]!r}"
            )
    last = max(theirs, default=-1)
    if last >= size:
        raise MismatchError(
            f"draft {source} has vocab_size {size}: the target's tokenizer has ids up to {last}"
        )


def _tokens(source: str, revision: str | None) -> dict[int, str] | None:
    """Returns the token of every id; None = the model has none that can be read.

    Raises:
        MismatchError: A library that it needs is missing, or the file is broken.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    except Exception as error:  # A missing library, or a plain one of tokenizers.
        raise MismatchError(
            f"cannot read the tokenizer of {source}: {first_line(error)}"
        ) from error
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return {token_id: token for token, token_id in vocabulary.items()}
