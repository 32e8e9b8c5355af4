"""The fields that completions and chat completions share."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, FailFast, Field, model_validator

from arborist.core.errors import InvalidArgumentError
from arborist.orchestrator.api.incoming import IncomingRequest, Prompt
from arborist.orchestrator.api.openai.request_model import RequestModel
from arborist.orchestrator.api.openai.response_format import Format
from arborist.orchestrator.api.openai.speculation_fields import Speculation, SpeculationFields
from arborist.orchestrator.api.openai.stream_options import StreamOptions

# Token ids have 32 bits.
_MAX_ID_DIGITS = 10


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class GenerationFields(RequestModel):
    """How to generate. Values are checked by the validator that gRPC has too."""

    model: str = ""
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    n: int = 1
    stop: Annotated[list[str], FailFast(), BeforeValidator(_as_list)] = Field(default=[])
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] = Field(default={})
    ignore_eos: bool = False
    min_tokens: int = 0
    stop_token_ids: Annotated[list[int], FailFast()] = Field(default=[])
    speculation: Speculation = SpeculationFields()
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    return_token_ids: bool = False
    response_format: Format = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise InvalidArgumentError(
                "max_completion_tokens", self.max_completion_tokens, "max_tokens, or one of the two"
            )
        return self

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """Returns what to continue, in the order of the choices."""
        raise NotImplementedError

    @property
    def num_logprobs(self) -> int | None:
        """Returns how many log-probs are wanted beside each token's own; None = none at all."""
        raise NotImplementedError

    @property
    def names(self) -> dict[str, str]:
        """Returns what this door calls fields that the validator knows by another name."""
        return {"max_tokens": "max_completion_tokens"} if self.max_tokens is None else {}

    def incoming(self, prompt: Prompt, traceparent: str) -> IncomingRequest:
        """Returns the request of one output, unchecked.

        Args:
            prompt: One of the prompts.
            traceparent: W3C trace context of the caller; empty = none.
        """
        return IncomingRequest(
            prompt=prompt,
            model=self.model,
            max_tokens=(
                self.max_tokens if self.max_tokens is not None else self.max_completion_tokens
            ),
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed,
            stop=tuple(self.stop),
            speculation=self.speculation.options(),
            ignore_eos=self.ignore_eos,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=_by_token_id(self.logit_bias),
            min_tokens=self.min_tokens,
            stop_token_ids=tuple(self.stop_token_ids),
            num_logprobs=self.num_logprobs,
            response_format=self.response_format,
            traceparent=traceparent,
        )


def _by_token_id(biases: dict[str, float]) -> dict[int, float]:
    """Returns biases by number; JSON knows text as a key only."""
    for key in biases:
        if not (key.isascii() and key.isdecimal() and len(key) <= _MAX_ID_DIGITS):
            raise InvalidArgumentError("logit_bias", "a key", "token ids, such as '42'")
    return {int(key): value for key, value in biases.items()}
