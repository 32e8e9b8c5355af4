"""The published list of fields that are not honoured: ignored without harm, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from arborist.core.errors import InvalidArgumentError

IGNORED_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "metadata": "for the caller's own records",
        "parallel_tool_calls": "says nothing without tools",
        "prediction": "a hint that never changes an output",
        "prompt_cache_key": "a hint about caches",
        "prompt_cache_retention": "a hint about caches",
        "safety_identifier": "names the end user",
        "service_tier": "there is one",
        "store": "nothing is stored",
        "user": "names the end user",
    }
)
"""Field → why leaving it out changes no output; any value is taken."""


@dataclass(frozen=True, slots=True)
class RefusedField:
    """A field whose meaning would be lost.

    Attributes:
        reason: What is not there.
        harmless: Values that ask for nothing, and are taken; null always is.
    """

    reason: str
    harmless: tuple[Any, ...] = ()


REFUSED_FIELDS: Mapping[str, RefusedField] = MappingProxyType(
    {
        "add_generation_prompt": RefusedField("the assistant always speaks next", (True,)),
        "add_special_tokens": RefusedField("prompts are tokenised the model's own way"),
        "allowed_token_ids": RefusedField("use logit_bias"),
        "audio": RefusedField("text only"),
        "bad_words": RefusedField("use logit_bias", ([],)),
        "best_of": RefusedField("outputs are not ranked", (1,)),
        "chat_template": RefusedField("the model's own template is used"),
        "chat_template_kwargs": RefusedField("the model's own template is used", ({},)),
        "continue_final_message": RefusedField("the assistant always speaks next", (False,)),
        "documents": RefusedField("put them into messages", ([],)),
        "early_stopping": RefusedField("there is no beam search", (False,)),
        "echo": RefusedField("prompts are not repeated", (False,)),
        "function_call": RefusedField("no tool calls", ("none",)),
        "functions": RefusedField("no tool calls", ([],)),
        "include_stop_str_in_output": RefusedField("text ends before a stop string", (False,)),
        "length_penalty": RefusedField("there is no beam search", (1, 1.0)),
        "modalities": RefusedField("text only", (["text"],)),
        "priority": RefusedField("requests are served in order", (0,)),
        "prompt_logprobs": RefusedField("prompts get no log-probs"),
        "reasoning_effort": RefusedField("no model with levels of reasoning"),
        "skip_special_tokens": RefusedField("special tokens have no text", (True,)),
        "spaces_between_special_tokens": RefusedField("special tokens have no text", (True,)),
        "structured_outputs": RefusedField("use response_format"),
        "suffix": RefusedField("no text is filled in", ("",)),
        "tool_choice": RefusedField("no tool calls", ("none", "auto")),
        "tools": RefusedField("no tool calls", ([],)),
        "truncate_prompt_tokens": RefusedField("prompts are never cut"),
        "use_beam_search": RefusedField("there is no beam search", (False,)),
        "verbosity": RefusedField("no model with levels of verbosity"),
        "web_search_options": RefusedField("nothing is searched"),
    }
)
"""Field → why it is refused. What stands in no list and no request model is refused as unknown."""


def honoured_fields(values: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """Returns what a request says, without what may be ignored.

    Args:
        values: The decoded body.
        known: Fields the request model has.
    Raises:
        InvalidArgumentError: Names the first field that is unknown or not supported.
    """
    honoured = {}
    for name, value in values.items():
        if name in known:
            if value is not None:
                honoured[name] = value
        elif name in REFUSED_FIELDS:
            _check_harmless(name, value, REFUSED_FIELDS[name])
        elif name not in IGNORED_FIELDS:
            raise InvalidArgumentError(_shown(name), "given", "absent: there is no such field")
    return honoured


def _check_harmless(name: str, value: Any, field: RefusedField) -> None:
    if value is None or any(type(one) is type(value) and one == value for one in field.harmless):
        return
    allowed = " or ".join(["absent", *(repr(one) for one in field.harmless)])
    raise InvalidArgumentError(name, "given", f"{allowed}: {field.reason}")


def _shown(name: str) -> str:
    """Returns a client's own word as it may stand in a one-line message."""
    return name[:64].encode("unicode_escape").decode("ascii")
