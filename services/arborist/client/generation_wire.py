"""The public contract's messages and the SDK's own types."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping, Sequence

from arborist.client.completion import (
    FinishReason,
    ModelCard,
    OutputLogprobs,
    RoundEvent,
    RoundTimes,
    SpeculationSummary,
    Started,
    Summary,
    Timing,
    TokenLogprob,
)
from arborist.client.prompt import JsonSchema, Message, Prompt, Speculation
from arborist.core.errors import ArboristError, InvalidArgumentError
from arborist.v1 import generation_pb2 as pb

_FINISH_REASONS: dict[int, FinishReason] = {
    pb.FINISH_REASON_EOS: "eos",
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_CANCELLED: "cancelled",
}

# What a message can carry where it is not a 32-bit integer.
_TEXT, _NUMBER, _SWITCH = "text that UTF-8 can carry", "a number", "true or false"
_CARRIED = {
    "content": _TEXT,
    "enabled": _SWITCH,
    "adaptive": _SWITCH,
    "frequency_penalty": _NUMBER,
    "ignore_eos": _SWITCH,
    "json_schema": _TEXT,
    "logit_bias": "a number for a 32-bit token id",
    "min_p": _NUMBER,
    "model": _TEXT,
    "policy": _TEXT,
    "presence_penalty": _NUMBER,
    "prompt": _TEXT,
    "repetition_penalty": _NUMBER,
    "role": _TEXT,
    "seed": "an unsigned 64-bit integer",
    "stop": _TEXT,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
}


def write_request(
    prompt: Prompt,
    *,
    model: str,
    max_tokens: int | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    seed: int | None,
    stop: Sequence[str],
    speculation: Speculation | None,
    ignore_eos: bool,
    repetition_penalty: float | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    logit_bias: Mapping[int, float] | None = None,
    min_tokens: int | None = None,
    stop_token_ids: Sequence[int] = (),
    logprobs: int | None = None,
    json_schema: JsonSchema | None = None,
    json_object: bool = False,
) -> pb.GenerateRequest:
    """Returns the message of a request; the server checks the values.

    Raises:
        InvalidArgumentError: A value that no message can carry: another type, more bits.
    """
    message = pb.GenerateRequest()
    _set(message, "model", model)
    _write_prompt(message, prompt)
    _set(message, "max_tokens", max_tokens)
    for name, value in (
        ("temperature", temperature),
        ("top_k", top_k),
        ("top_p", top_p),
        ("min_p", min_p),
        ("seed", seed),
        ("repetition_penalty", repetition_penalty),
        ("presence_penalty", presence_penalty),
        ("frequency_penalty", frequency_penalty),
    ):
        _set(message.sampling, name, value)
    for token, bias in (logit_bias or {}).items():
        _set_item(message.sampling.logit_bias, token, bias, "logit_bias")
    _set(message, "min_tokens", min_tokens)
    _extend(message.stop_token_ids, stop_token_ids, "stop_token_ids")
    _set(message, "logprobs", logprobs)
    _extend(message.stop, (stop,) if isinstance(stop, str) else stop, "stop")
    if speculation is not None:
        for name in ("enabled", "depth", "top_k", "num_draft_tokens", "policy", "adaptive"):
            _set(message.speculation, name, getattr(speculation, name), prefix="speculation.")
    _set(message, "ignore_eos", ignore_eos)
    _write_format(message.response_format, json_schema, json_object)
    return message


def read_started(message: pb.Started) -> Started:
    """Returns what the server decided."""
    return Started(
        message.request_id, message.model, message.prompt_tokens, message.seed, message.trace_id
    )


def read_round(message: pb.Round) -> RoundEvent:
    """Returns what a round delivered."""
    times = message.times
    return RoundEvent(
        round_index=message.round_index,
        token_ids=tuple(message.token_ids),
        text=message.text,
        num_draft_tokens=message.num_draft_tokens,
        accepted_count=message.accepted_count,
        depth=message.depth,
        logprobs=tuple(_read_logprobs(one) for one in message.logprobs),
        times=RoundTimes(
            draft_compute_ms=times.draft_compute_ms,
            verify_compute_ms=times.verify_compute_ms,
            transport_ms=times.transport_ms,
            controller_ms=times.controller_ms,
            total_ms=times.total_ms,
        ),
    )


def _read_logprobs(message: pb.OutputLogprobs) -> OutputLogprobs:
    top = tuple(TokenLogprob(one.token_id, one.logprob) for one in message.top)
    return OutputLogprobs(message.logprob, top)


def read_summary(message: pb.Summary) -> Summary:
    """Returns how an output ended.

    Raises:
        ArboristError: For a reason this version does not know.
    """
    if message.finish_reason not in _FINISH_REASONS:
        raise ArboristError("the server is newer than this client: unknown finish reason")
    speculation, timing = message.speculation, message.timing
    return Summary(
        finish_reason=_FINISH_REASONS[message.finish_reason],
        prompt_tokens=message.prompt_tokens,
        cached_prompt_tokens=message.cached_prompt_tokens,
        completion_tokens=message.completion_tokens,
        speculation=SpeculationSummary(
            rounds=speculation.rounds,
            draft_tokens=speculation.draft_tokens,
            accepted_tokens=speculation.accepted_tokens,
            tau=speculation.tau,
            acceptance_histogram=tuple(speculation.acceptance_histogram),
            rounds_without_draft=speculation.rounds_without_draft,
        ),
        timing=Timing(
            time_to_first_token_ms=timing.time_to_first_token_ms,
            decode_ms=timing.decode_ms,
            total_ms=timing.total_ms,
            tokens_per_s=timing.tokens_per_s,
        ),
    )


def read_models(message: pb.ListModelsResponse) -> list[ModelCard]:
    """Returns the models a server has."""
    return [
        ModelCard(
            id=one.id,
            context_length=one.context_length,
            vocab_size=one.vocab_size,
            created_s=one.created_s,
            speculation=one.speculation,
        )
        for one in message.models
    ]


def _write_prompt(message: pb.GenerateRequest, prompt: Prompt) -> None:
    if isinstance(prompt, str):
        _set(message, "text", prompt, field="prompt")
        return
    messages = [one for one in prompt if isinstance(one, Message)]
    if messages:
        if len(messages) != len(prompt):
            raise InvalidArgumentError("prompt", "a mixture", "text, token ids or messages")
        for index, one in enumerate(messages):
            turn = message.messages.messages.add()
            _set(turn, "role", one.role, prefix=f"messages[{index}].")
            _set(turn, "content", one.content, prefix=f"messages[{index}].")
        return
    message.token_ids.SetInParent()
    _extend(message.token_ids.ids, prompt, "token_ids")


def _write_format(
    message: pb.ResponseFormat, json_schema: JsonSchema | None, json_object: bool
) -> None:
    if json_object:
        if json_schema is not None:
            raise InvalidArgumentError("json_object", "true", "false with json_schema")
        message.json_object.SetInParent()
    elif json_schema is not None:
        _set(message, "json_schema", _schema_text(json_schema))


def _schema_text(schema: JsonSchema) -> str:
    if isinstance(schema, str):
        return schema
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        kind = type(schema).__name__
        raise InvalidArgumentError("json_schema", kind, "what JSON can carry") from None


def _set(message: object, name: str, value: object, *, prefix: str = "", field: str = "") -> None:
    """Sets a field; protobuf refuses what the field's type cannot hold."""
    if value is None:
        return
    try:
        setattr(message, name, value)
    except (TypeError, ValueError):
        raise _unfit(field or f"{prefix}{name}", value) from None


def _set_item(target: MutableMapping[int, float], token: int, value: float, field: str) -> None:
    try:
        target[token] = value
    except (TypeError, ValueError):
        raise _unfit(f"{field}[{str(token)[:64]}]", value) from None


def _extend(target: object, values: Sequence[object], field: str) -> None:
    append = getattr(target, "append")  # noqa: B009 - containers of protobuf have no common type
    for index, value in enumerate(values):
        try:
            append(value)
        except (TypeError, ValueError):
            raise _unfit(f"{field}[{index}]", value) from None


def _unfit(field: str, value: object) -> InvalidArgumentError:
    # Never the text itself: it may be a prompt.
    shown = type(value).__name__ if isinstance(value, (str, bytes)) else str(value)[:64]
    limit = _CARRIED.get(field.rpartition(".")[2].partition("[")[0], "a 32-bit integer")
    return InvalidArgumentError(field, shown, limit)
