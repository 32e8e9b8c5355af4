"""Text to token ids and back, with the tokenizer that lies beside the target's weights."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from arborist.common.tokenizer_files import load_tokenizer_files
from arborist.core.errors import InvalidArgumentError
from arborist.orchestrator.api.incoming import ChatTurn

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_REASON_LENGTH = 200
# Labels kept: log-probs name the same likely tokens again and again, each costs two decodes.
_MAX_LABELS = 16384


class Tokenizer:
    """The tokenizer of one model; stateless, so threads may share it."""

    def __init__(self, backend: Any) -> None:
        """Wraps a tokenizer of transformers.

        Args:
            backend: A `PreTrainedTokenizerBase`.
        """
        self._backend = backend
        # The Rust tokenizer itself where there is one: the wrapper's `decode` costs more than it.
        self._fast = getattr(backend, "backend_tokenizer", None)
        added = (index for index, one in backend.added_tokens_decoder.items() if one.special)
        self._special_ids = frozenset(added) | frozenset(backend.all_special_ids)
        byte_ids = (
            index for token, index in backend.get_vocab().items() if _BYTE_TOKEN.fullmatch(token)
        )
        self._byte_ids = frozenset(byte_ids)
        self._byte_of_letter = _byte_letters()
        self._label = functools.lru_cache(maxsize=_MAX_LABELS)(self._make_label)

    @property
    def byte_ids(self) -> frozenset[int]:
        """Returns the ids of byte-fallback tokens (`<0x0A>`): their text needs their neighbours."""
        return self._byte_ids

    @property
    def special_ids(self) -> frozenset[int]:
        """Returns the ids that never become text."""
        return self._special_ids

    @property
    def has_chat_template(self) -> bool:
        """Returns whether conversations can be rendered."""
        return bool(self._backend.chat_template)

    def encode(self, text: str) -> list[int]:
        """Returns exactly `tokenizer(text).input_ids`.

        Args:
            text: Valid Unicode, no lone surrogates.
        """
        # Not verbose: a text over the model's length is for the validator to refuse, not to log.
        return [int(one) for one in self._backend(text, verbose=False).input_ids]

    def render_chat(self, turns: Sequence[ChatTurn]) -> list[int]:
        """Renders a conversation up to where the assistant is to speak.

        Args:
            turns: At least one, with known roles.
        Returns:
            Token ids of the rendered chat template.
        Raises:
            InvalidArgumentError: The model has no chat template, or the template refuses the
                conversation.
        """
        if not self.has_chat_template:
            raise InvalidArgumentError(
                "messages", f"{len(turns)} messages", "absent: this model has no chat template"
            )
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            ids = self._backend.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except TemplateError as error:
            reason = " ".join(str(error).split())[:_MAX_REASON_LENGTH]
            raise InvalidArgumentError(
                "messages", f"{len(turns)} messages", f"what the chat template takes: {reason}"
            ) from None
        return [int(one) for one in ids]

    def token_text(self, token_id: int) -> str:
        """Returns what a token adds to a text that it does not begin.

        Args:
            token_id: Any id.
        Returns:
            Its text; the name of a special token; U+FFFD for part of a character; empty for an id
            without a token.
        """
        return self._label(token_id)[0]

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes of a token's text, exact also for part of a character."""
        return self._label(token_id)[1]

    def _make_label(self, token_id: int) -> tuple[str, bytes]:
        text = self._token_text(token_id)
        return text, self._token_bytes(token_id, text)

    def _token_text(self, token_id: int) -> str:
        if token_id in self._special_ids:
            return str(self._backend.convert_ids_to_tokens(token_id))
        # Behind itself, because some decoders drop a leading space at the start of a text.
        return self.decode((token_id, token_id))[len(self.decode((token_id,))) :]

    def _token_bytes(self, token_id: int, text: str) -> bytes:
        if _REPLACEMENT not in text:
            return text.encode()
        piece = str(self._backend.convert_ids_to_tokens(token_id))
        if _BYTE_TOKEN.fullmatch(piece):
            return bytes((int(piece[1:-1], 16),))
        if all(one in self._byte_of_letter for one in piece):
            return bytes(self._byte_of_letter[one] for one in piece)
        return text.encode()

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of token ids; special tokens have none, broken UTF-8 becomes U+FFFD."""
        ids = list(token_ids)
        text: str = (
            self._fast.decode(ids, skip_special_tokens=True)
            if self._fast is not None
            else self._backend.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
        return text


def load_tokenizer(model: str, revision: str | None = None) -> Tokenizer | None:
    """Loads the tokenizer of a model.

    Args:
        model: Folder, or hub name when no such folder exists.
        revision: Branch, tag or commit of a hub model.
    Returns:
        The tokenizer, or None for a model that has none: it takes and gives token ids only.
    Raises:
        MismatchError: It is there but cannot be loaded; the message says why in one line.
    """
    backend = load_tokenizer_files(model, revision)
    return None if backend is None else Tokenizer(backend)


def _byte_letters() -> dict[str, int]:
    """Returns the letters that byte-level tokenizers write bytes with (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [one for one in range(256) if one not in printable]
    return {
        **{chr(one): one for one in printable},
        **{chr(256 + number): one for number, one in enumerate(others)},
    }
