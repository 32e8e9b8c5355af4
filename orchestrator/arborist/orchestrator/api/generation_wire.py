"""The public contract's messages and our own types; nothing else maps between them."""

from __future__ import annotations

from typing import Literal, TypeAlias

from arborist.core.logprobs import TokenLogprobs
from arborist.orchestrator.api.completion import CompletionEvent, TextRound
from arborist.orchestrator.api.incoming import (
    ChatPrompt,
    ChatTurn,
    IncomingRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    Prompt,
    ResponseFormat,
    TextPrompt,
    TokenPrompt,
)
from arborist.orchestrator.generation import ServedModel, SpeculationOptions, Started, Summary
from arborist.orchestrator.session import FinishReason
from arborist.v1 import generation_pb2 as pb

_Penalty: TypeAlias = Literal["repetition_penalty", "presence_penalty", "frequency_penalty"]

_FINISH_REASONS = {
    FinishReason.EOS: pb.FINISH_REASON_EOS,
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
}


def read_request(message: pb.GenerateRequest, traceparent: str) -> IncomingRequest:
    """Returns what a client asked for, unchecked.

    Args:
        message: As received.
        traceparent: From the call's metadata; empty = none.
    """
    sampling, speculation = message.sampling, message.speculation
    return IncomingRequest(
        prompt=_read_prompt(message),
        model=message.model,
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        temperature=sampling.temperature if sampling.HasField("temperature") else None,
        top_k=sampling.top_k if sampling.HasField("top_k") else None,
        top_p=sampling.top_p if sampling.HasField("top_p") else None,
        min_p=sampling.min_p if sampling.HasField("min_p") else None,
        seed=sampling.seed if sampling.HasField("seed") else None,
        stop=tuple(message.stop),
        speculation=SpeculationOptions(
            enabled=speculation.enabled if speculation.HasField("enabled") else None,
            depth=speculation.depth if speculation.HasField("depth") else None,
            top_k=speculation.top_k if speculation.HasField("top_k") else None,
            num_draft_tokens=(
                speculation.num_draft_tokens if speculation.HasField("num_draft_tokens") else None
            ),
            policy=speculation.policy if speculation.HasField("policy") else None,
            adaptive=speculation.adaptive if speculation.HasField("adaptive") else None,
        ),
        ignore_eos=message.ignore_eos,
        repetition_penalty=_given(sampling, "repetition_penalty"),
        presence_penalty=_given(sampling, "presence_penalty"),
        frequency_penalty=_given(sampling, "frequency_penalty"),
        logit_bias=dict(sampling.logit_bias),
        min_tokens=message.min_tokens,
        stop_token_ids=tuple(message.stop_token_ids),
        num_logprobs=message.logprobs if message.HasField("logprobs") else None,
        response_format=_read_format(message.response_format),
        traceparent=traceparent,
    )


def write_event(event: CompletionEvent) -> pb.GenerateResponse:
    """Returns the message of one event."""
    if isinstance(event, TextRound):
        return pb.GenerateResponse(round=_write_round(event))
    if isinstance(event, Started):
        started = pb.Started(
            request_id=event.request_id,
            model=event.model,
            prompt_tokens=event.prompt_tokens,
            seed=event.seed,
            trace_id=event.trace_id,
        )
        return pb.GenerateResponse(started=started)
    return pb.GenerateResponse(summary=_write_summary(event))


def write_models(models: list[ServedModel]) -> pb.ListModelsResponse:
    """Returns the message that names the models served."""
    return pb.ListModelsResponse(
        models=[
            pb.Model(
                id=model.id,
                context_length=model.context_length,
                vocab_size=model.vocab_size,
                created_s=model.created_s,
                speculation=model.speculation,
            )
            for model in models
        ]
    )


def _given(sampling: pb.Sampling, name: _Penalty) -> float | None:
    return getattr(sampling, name) if sampling.HasField(name) else None


def _read_prompt(message: pb.GenerateRequest) -> Prompt | None:
    kind = message.WhichOneof("prompt")
    if kind == "text":
        return TextPrompt(message.text)
    if kind == "token_ids":
        return TokenPrompt(tuple(message.token_ids.ids))
    if kind == "messages":
        return ChatPrompt(
            tuple(ChatTurn(one.role, one.content) for one in message.messages.messages)
        )
    return None


def _read_format(message: pb.ResponseFormat) -> ResponseFormat | None:
    kind = message.WhichOneof("format")
    if kind == "json_object":
        return JsonObjectFormat()
    return JsonSchemaFormat(message.json_schema) if kind == "json_schema" else None


def _write_round(event: TextRound) -> pb.Round:
    round_, times = event.round, event.round.times
    return pb.Round(
        round_index=round_.round_index,
        token_ids=round_.token_ids,
        text=event.text,
        num_draft_tokens=round_.num_draft_tokens,
        accepted_count=round_.accepted_count,
        depth=round_.depth,
        logprobs=[_write_logprobs(one) for one in round_.logprobs],
        times=pb.RoundTimes(
            draft_compute_ms=times.draft_compute_ms,
            verify_compute_ms=times.verify_compute_ms,
            transport_ms=times.transport_ms,
            controller_ms=times.controller_ms,
            total_ms=times.total_ms,
        ),
    )


def _write_logprobs(one: TokenLogprobs) -> pb.OutputLogprobs:
    top = [pb.TokenLogprob(token_id=token, logprob=value) for token, value in one.top]
    return pb.OutputLogprobs(logprob=one.logprob, top=top)


def _write_summary(summary: Summary) -> pb.Summary:
    speculation, timing = summary.speculation, summary.timing
    return pb.Summary(
        finish_reason=_FINISH_REASONS[summary.finish_reason],
        prompt_tokens=summary.prompt_tokens,
        cached_prompt_tokens=summary.cached_prompt_tokens,
        completion_tokens=summary.completion_tokens,
        speculation=pb.SpeculationSummary(
            rounds=speculation.rounds,
            draft_tokens=speculation.draft_tokens,
            accepted_tokens=speculation.accepted_tokens,
            tau=speculation.tau,
            acceptance_histogram=speculation.acceptance_histogram,
            rounds_without_draft=speculation.rounds_without_draft,
        ),
        timing=pb.Timing(
            time_to_first_token_ms=timing.time_to_first_token_ms,
            decode_ms=timing.decode_ms,
            total_ms=timing.total_ms,
            tokens_per_s=timing.tokens_per_s,
        ),
    )
