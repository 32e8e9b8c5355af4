"""JSON schemas to matchers: tried, compiled and kept, because a schema seldom comes once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher

from arborist.common.tokenizer_files import load_tokenizer_files
from arborist.core.errors import InvalidArgumentError, MismatchError
from arborist.core.grammar import Matcher, one_line
from arborist.core.schema_text import MAX_SCHEMA_BYTES, RESPONSE_FORMAT
from arborist.target.grammar_trial import GrammarTrial
from arborist.target.trial_process import compile_schema, load_tokenizer

_MAX_KEPT = 32


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """What compiling one schema may take.

    Attributes:
        compile_s: Processor time, in seconds.
        compile_bytes: Memory, in bytes.
    """

    compile_s: float = 0.5
    compile_bytes: int = 256 << 20


@dataclass(frozen=True, slots=True)
class _Ready:
    """What compiling needs once the tokenizer is loaded."""

    tokenizer: Any
    trial: GrammarTrial


class GrammarCompiler:
    """Compiles schemas for one target; threads may share it. Nothing is loaded before the first."""

    def __init__(
        self,
        model: str,
        revision: str | None,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        limits: GrammarLimits,
    ) -> None:
        """Prepares a compiler.

        Args:
            model: Folder or hub name whose tokenizer counts.
            revision: Branch, tag or commit of a hub model.
            vocab_size: Of the target's logits.
            eos_token_ids: Tokens that end an output, allowed exactly where the grammar accepts.
            limits: What a schema may take.
        """
        self._model = model
        self._revision = revision
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._limits = limits
        self._lock = threading.Lock()
        self._ready: _Ready | None = None
        # Refusals too, so that a bad schema that comes again costs nothing.
        self._kept: OrderedDict[str, LLMatcher | InvalidArgumentError] = OrderedDict()

    def compile(self, schema: str) -> None:
        """Compiles a schema and keeps it; takes long the first time.

        Args:
            schema: JSON text.
        Raises:
            InvalidArgumentError: It cannot be compiled, or takes too much; one line says why.
            MismatchError: The target's tokenizer cannot be used.
        """
        self._compiled(schema)

    def matcher(self, schema: str) -> Matcher:
        """Returns the matcher at the start of an output; sessions share it and move only copies.

        Args:
            schema: JSON text.
        Raises:
            InvalidArgumentError: It cannot be compiled, or takes too much; one line says why.
            MismatchError: The target's tokenizer cannot be used.
        """
        compiled: Matcher = self._compiled(schema)
        return compiled

    def _compiled(self, schema: str) -> LLMatcher:
        with self._lock:
            found = self._kept.get(schema)
            if found is None:
                found = self._compile(schema)
                self._kept[schema] = found
                if len(self._kept) > _MAX_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(schema)
        if isinstance(found, InvalidArgumentError):
            raise InvalidArgumentError(**_fields(found))
        return found

    def _compile(self, schema: str) -> LLMatcher | InvalidArgumentError:
        size = len(schema.encode())
        if size > MAX_SCHEMA_BYTES:
            return InvalidArgumentError(
                RESPONSE_FORMAT, f"{size} bytes", f"at most {MAX_SCHEMA_BYTES} bytes"
            )
        ready = self._ready or self._load()
        self._ready = ready
        reason, matcher = ready.trial.reason_against(schema), None
        if not reason:
            matcher, reason = compile_schema(ready.tokenizer, schema)
        if matcher is None:
            limit = f"a schema that can be compiled: {one_line(reason)}"
            return InvalidArgumentError(RESPONSE_FORMAT, f"a schema of {size} bytes", limit)
        return matcher

    def _load(self) -> _Ready:
        tokenizer = load_tokenizer_files(self._model, self._revision)
        if tokenizer is None:
            raise InvalidArgumentError(
                RESPONSE_FORMAT, "given", "absent: the target has no tokenizer"
            )
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or not self._eos_token_ids:
            missing = "end token" if backend is not None else "tokenizer.json"
            raise InvalidArgumentError(
                RESPONSE_FORMAT, "given", f"absent: the target has no {missing}"
            )
        backend.no_padding()
        backend.no_truncation()
        setup = {
            "tokenizer": backend.to_str(),
            "vocab_size": max(self._vocab_size, len(tokenizer)),
            "eos_token_ids": self._eos_token_ids,
            "compile_s": self._limits.compile_s,
            "compile_bytes": self._limits.compile_bytes,
        }
        try:
            return _Ready(load_tokenizer(setup), GrammarTrial(setup))
        except ValueError as error:
            raise MismatchError(
                f"the tokenizer of {self._model} cannot constrain outputs: {one_line(str(error))}"
            ) from None


def _fields(error: InvalidArgumentError) -> dict[str, Any]:
    """Returns what an error was made of: each caller gets one of its own."""
    return {name: error.metadata[name] for name in ("field", "value", "limit")}
