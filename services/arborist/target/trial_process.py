"""Tries schemas in a process that a bad one may take down: run as a module of its own.

The library that compiles grammars bounds most of its work, but not all: some short schemas take it
minutes. Here every schema is compiled in a fork of its own, which the kernel ends when it has
used up its processor time or memory. Only what came through is compiled where sessions live.

The first line of input is the set-up, every further line a schema; each is answered by a line.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

_PAGE_BYTES = resource.getpagesize()
_PARSER_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_items_in_row": 10_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
}
"""The library's own limits, per schema and per mask; they make it give up with a reason."""
_DEFAULTS: Any = {"whitespace_pattern": r" |\n {0,32}"}
"""Between two parts: nothing, a space, or a line break with its indentation. Were it free, a small
model would fill outputs with white space. A schema's own `x-guidance` may say otherwise."""


def load_tokenizer(setup: dict[str, Any]) -> LLTokenizer:
    """Returns the tokenizer of a set-up: `tokenizer` (JSON text), `vocab_size`, `eos_token_ids`."""
    return LLTokenizer(
        setup["tokenizer"], n_vocab=setup["vocab_size"], eos_token=setup["eos_token_ids"]
    )


def compile_schema(tokenizer: LLTokenizer, schema: str) -> tuple[LLMatcher | None, str]:
    """Compiles a schema, up to its first mask, which may fail or take long too.

    Args:
        tokenizer: Of the target.
        schema: JSON text.
    Returns:
        The matcher at the start of an output, or None and the reason.
    """
    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, defaults=_DEFAULTS)
    except ValueError as error:
        return None, str(error)
    limits = LLParserLimits(verbose_errors=False, **_PARSER_LIMITS)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return (None, matcher.get_error()) if matcher.is_error() else (matcher, "")


def main() -> None:
    """Answers schemas until the input ends."""
    setup = json.loads(sys.stdin.readline())
    tokenizer = load_tokenizer(setup)
    for line in sys.stdin:
        _answer(_try(tokenizer, json.loads(line), setup))


def _try(tokenizer: LLTokenizer, schema: str, setup: dict[str, Any]) -> str | None:
    """Returns the verdict of a fork; it writes its own answer when it comes to one."""
    child = os.fork()
    if child == 0:
        answered = False
        try:
            _bound(setup["compile_s"], setup["compile_bytes"])
            _answer(compile_schema(tokenizer, schema)[1])
            answered = True
        finally:
            os._exit(not answered)
    _, status = os.waitpid(child, 0)
    if status == 0:
        return None
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGVTALRM:
        return f"it takes more than {setup['compile_s']:g} s to compile"
    return f"it takes more than {setup['compile_bytes']} bytes to compile"


def _bound(compile_s: float, compile_bytes: int) -> None:
    """Bounds what this process may still use; the kernel ends it beyond that."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_BYTES
    limit = held + compile_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_VIRTUAL, compile_s)


def _answer(reason: str | None) -> None:
    if reason is not None:
        sys.stdout.write(json.dumps(reason) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
