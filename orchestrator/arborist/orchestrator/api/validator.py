"""The one validator of the public API: what passes here may start, what does not starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arborist.common.config import ControllerConfig, SpeculationConfig
from arborist.common.traceparent import parse_traceparent
from arborist.core.errors import InvalidArgumentError, UnavailableError, UnknownModelError
from arborist.core.logprobs import MAX_LOGPROBS
from arborist.core.policy_settings import check_policy_name
from arborist.core.sampling import MAX_LOGIT_BIASES, SamplingParams
from arborist.core.schema_text import (
    ANY_OBJECT,
    MAX_SCHEMA_BYTES,
    RESPONSE_FORMAT,
    check_schema,
)
from arborist.core.shape import MAX_DEPTH, MAX_NUM_DRAFT_TOKENS, MAX_TOP_K
from arborist.orchestrator.api.incoming import (
    ChatPrompt,
    IncomingRequest,
    JsonObjectFormat,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from arborist.orchestrator.api.tokenizer import Tokenizer
from arborist.orchestrator.generation import GenerationRequest, ServedModel, SpeculationOptions

ROLES = ("system", "user", "assistant")
# The wire carries top_k in 32 bits.
MAX_SAMPLING_TOP_K = (1 << 31) - 1
MAX_STOP_TOKEN_IDS = 64
_MAX_ECHO_LENGTH = 64


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a server allows beyond what model and algorithm do.

    Attributes:
        max_prompt_tokens: Longest prompt, in tokens.
        max_max_tokens: Largest max_tokens.
        default_max_tokens: max_tokens when unset; less where the context ends.
        max_stop_strings: Most stop strings.
        max_stop_bytes: Longest stop string, in UTF-8 bytes.
        max_n: Most outputs of one prompt.
        max_prompts: Most prompts of one request.
        max_outputs: Most outputs of one request: more would never be admitted together.
        max_schema_bytes: Longest JSON schema, in UTF-8 bytes.
        max_schema_depth: Deepest nesting of a JSON schema, in brackets.
        max_depth: Most levels of a tree.
        max_top_k: Widest frontier of a tree.
        max_num_draft_tokens: Most drafted nodes verified per round.
    """

    max_prompt_tokens: int = 131_072
    max_max_tokens: int = 131_072
    default_max_tokens: int = 256
    max_stop_strings: int = 4
    max_stop_bytes: int = 64
    max_n: int = 4
    max_prompts: int = 32
    max_outputs: int = 320
    max_schema_bytes: int = MAX_SCHEMA_BYTES
    max_schema_depth: int = 64
    max_depth: int = MAX_DEPTH
    max_top_k: int = MAX_TOP_K
    max_num_draft_tokens: int = MAX_NUM_DRAFT_TOKENS

    @classmethod
    def from_config(
        cls, controller: ControllerConfig, speculation: SpeculationConfig
    ) -> RequestLimits:
        """Returns the limits of a configuration."""
        return cls(
            max_prompt_tokens=controller.max_prompt_tokens,
            max_max_tokens=controller.max_max_tokens,
            default_max_tokens=controller.default_max_tokens,
            max_stop_strings=controller.max_stop_strings,
            max_stop_bytes=controller.max_stop_bytes,
            max_n=controller.max_n,
            max_prompts=controller.max_prompts,
            max_outputs=_most_admitted(controller),
            max_schema_bytes=controller.max_schema_bytes,
            max_schema_depth=controller.max_schema_depth,
            max_depth=speculation.max_depth,
            max_top_k=speculation.max_top_k,
            max_num_draft_tokens=speculation.max_num_draft_tokens,
        )


@dataclass(frozen=True, slots=True)
class ValidRequest:
    """A request that may start.

    Attributes:
        generation: What the controller gets.
        stop: Strings the output ends before; not empty ones.
        eos_token_ids: Tokens that end this output; empty when it ignores them.
    """

    generation: GenerationRequest
    stop: tuple[str, ...]
    eos_token_ids: frozenset[int]


class Validator:
    """Checks requests against models, limits and algorithm; starts nothing and keeps nothing."""

    def __init__(self, limits: RequestLimits, tokenizer: Tokenizer | None) -> None:
        """Prepares a validator.

        Args:
            limits: What the server allows.
            tokenizer: Of the model served; None = it takes and gives token ids only.
        """
        self._limits = limits
        self._tokenizer = tokenizer

    def validate(self, request: IncomingRequest, models: Sequence[ServedModel]) -> ValidRequest:
        """Checks everything a client can get wrong; costs as much as tokenising the prompt.

        Args:
            request: As it arrived.
            models: Models served now.
        Raises:
            InvalidArgumentError: Names field, value and limit of the first thing wrong.
            UnknownModelError: Names the models served.
            UnavailableError: No model is served yet.
        """
        model = choose_model(request.model, models)
        sampling = _check_sampling(request, model)
        self._check_stop(request.stop)
        self._check_speculation(request.speculation)
        if request.max_tokens is not None:
            limit = f"an integer in [1, {self._limits.max_max_tokens}]"
            _require(
                1 <= request.max_tokens <= self._limits.max_max_tokens,
                "max_tokens",
                request.max_tokens,
                limit,
            )
        _check_stop_tokens(request.stop_token_ids, model)
        _check_logprobs(request.num_logprobs)
        schema = self._schema(request)
        prompt = self._prompt_ids(request.prompt, model)
        max_tokens = self._max_tokens(request.max_tokens, len(prompt), model)
        _require(
            sampling.min_tokens <= max_tokens,
            "min_tokens",
            sampling.min_tokens,
            f"an integer in [0, {max_tokens}], max_tokens",
        )
        generation = GenerationRequest(
            prompt_token_ids=tuple(prompt),
            max_tokens=max_tokens,
            model=model.id,
            sampling=sampling,
            seed=request.seed,
            speculation=request.speculation,
            ignore_eos=request.ignore_eos,
            stop_token_ids=tuple(request.stop_token_ids),
            num_logprobs=request.num_logprobs,
            json_schema=schema,
            # What does not parse is to be ignored, says the standard.
            traceparent=request.traceparent if parse_traceparent(request.traceparent) else "",
            client_key=request.client_key,
        )
        eos = frozenset() if request.ignore_eos else frozenset(model.eos_token_ids)
        return ValidRequest(generation, tuple(request.stop), eos)

    def check_choices(self, num_prompts: int, n: int) -> None:
        """Checks how many outputs one request asks for.

        Args:
            num_prompts: Its prompts.
            n: Outputs of each.
        Raises:
            InvalidArgumentError: Names field, value and limit.
        """
        most = self._limits.max_prompts
        _require(
            1 <= num_prompts <= most, "prompt", f"{num_prompts} prompts", f"1 to {most} prompts"
        )
        _require(1 <= n <= self._limits.max_n, "n", n, f"an integer in [1, {self._limits.max_n}]")
        count = self._limits.max_outputs
        each = n if num_prompts == 1 else f"{n} of each of {num_prompts} prompts"
        _require(n * num_prompts <= count, "n", each, f"at most {count} outputs in all")

    def _prompt_ids(self, prompt: Prompt | None, model: ServedModel) -> list[int]:
        if prompt is None:
            raise InvalidArgumentError("prompt", "absent", "text, token ids or messages")
        ids = self.encode(prompt)
        _require(len(ids) > 0, "prompt", "0 tokens", "at least 1 token")
        longest = min(self._limits.max_prompt_tokens, model.context_length - 1)
        # Clients tell a prompt that is too long by the words "context length".
        reason = "" if longest < model.context_length - 1 else ", one less than the context length"
        _require(
            len(ids) <= longest, "prompt", f"{len(ids)} tokens", f"at most {longest} tokens{reason}"
        )
        for index, token in enumerate(ids):
            if not 0 <= token < model.vocab_size:
                _check_token_id(f"token_ids[{index}]", token, model)
        return ids

    def encode(self, prompt: Prompt) -> list[int]:
        """Returns a prompt's token ids, exactly as a request would use them.

        Raises:
            InvalidArgumentError: No text, no tokenizer, or a conversation that cannot be rendered.
        """
        if isinstance(prompt, TokenPrompt):
            return list(prompt.token_ids)
        if isinstance(prompt, TextPrompt):
            _check_text("prompt", prompt.text)
            _require(bool(prompt.text), "prompt", "0 characters", "at least 1 character")
            return self._require_tokenizer("prompt").encode(prompt.text)
        return self._encode_chat(prompt)

    def _encode_chat(self, prompt: ChatPrompt) -> list[int]:
        _require(len(prompt.turns) > 0, "messages", "0 messages", "at least 1 message")
        for index, turn in enumerate(prompt.turns):
            _require(
                turn.role in ROLES,
                f"messages[{index}].role",
                _echo(turn.role),
                f"one of {', '.join(ROLES)}",
            )
            _check_text(f"messages[{index}].content", turn.content)
        return self._require_tokenizer("messages").render_chat(prompt.turns)

    def _require_tokenizer(self, field: str) -> Tokenizer:
        if self._tokenizer is None:
            raise InvalidArgumentError(
                field, "text", "token ids: the model served has no tokenizer"
            )
        return self._tokenizer

    def _max_tokens(self, asked: int | None, prompt_tokens: int, model: ServedModel) -> int:
        room = model.context_length - prompt_tokens
        if asked is None:
            return min(self._limits.default_max_tokens, self._limits.max_max_tokens, room)
        if asked > room:
            raise InvalidArgumentError(
                "prompt + max_tokens",
                f"{prompt_tokens} + {asked} = {prompt_tokens + asked} tokens",
                f"at most {model.context_length} tokens, the context length of {model.id}",
            )
        return asked

    def _check_stop(self, stop: Sequence[str]) -> None:
        count, size = self._limits.max_stop_strings, self._limits.max_stop_bytes
        _require(len(stop) <= count, "stop", f"{len(stop)} strings", f"at most {count} strings")
        for index, one in enumerate(stop):
            _check_text(f"stop[{index}]", one)
            length = len(one.encode())
            _require(1 <= length <= size, f"stop[{index}]", f"{length} bytes", f"1 to {size} bytes")
        if stop and self._tokenizer is None:
            raise InvalidArgumentError(
                "stop", f"{len(stop)} strings", "empty: the model served has no tokenizer"
            )

    def _schema(self, request: IncomingRequest) -> str | None:
        """Returns the schema that the output must fit; None = free text."""
        asked = request.response_format
        if asked is None:
            return None
        if self._tokenizer is None:
            raise InvalidArgumentError(
                RESPONSE_FORMAT, "given", "absent: the model served has no tokenizer"
            )
        if request.ignore_eos:
            # Behind a finished document nothing else may come.
            raise InvalidArgumentError("ignore_eos", "true", "false with response_format")
        if isinstance(asked, JsonObjectFormat):
            return ANY_OBJECT
        field, limits = f"{RESPONSE_FORMAT}.json_schema", self._limits
        _check_text(field, asked.schema)
        check_schema(field, asked.schema, limits.max_schema_bytes, limits.max_schema_depth)
        return asked.schema

    def _check_speculation(self, options: SpeculationOptions) -> None:
        if options.policy is not None:
            check_policy_name(options.policy)
        limits = self._limits
        for name, value, largest in (
            ("depth", options.depth, limits.max_depth),
            ("top_k", options.top_k, limits.max_top_k),
            ("num_draft_tokens", options.num_draft_tokens, limits.max_num_draft_tokens),
        ):
            if value is not None:
                _require(
                    1 <= value <= largest,
                    f"speculation.{name}",
                    value,
                    f"an integer in [1, {largest}]",
                )


def _most_admitted(controller: ControllerConfig) -> int:
    """Returns the most outputs that can run and wait together for one client."""
    together = controller.max_sessions + controller.max_queued_requests
    return min(together, controller.max_requests_per_key or together)


def choose_model(name: str, models: Sequence[ServedModel]) -> ServedModel:
    """Returns the model asked for.

    Args:
        name: Served name; empty = the only one.
        models: Models served now.
    Raises:
        UnavailableError: None is served yet.
        UnknownModelError: No model of that name, or no name and several models.
    """
    if not models:
        raise UnavailableError("no model is ready yet: retry later", retry_after_ms=1000)
    for model in models:
        if model.id == name or (not name and len(models) == 1):
            return model
    served = ", ".join(sorted(model.id for model in models))
    shown = _echo(name) or "empty"
    raise UnknownModelError(
        f"model = {shown}: must be one of the models served: {served}",
        metadata={"field": "model", "value": shown, "limit": f"one of {served}"},
    )


def _check_sampling(request: IncomingRequest, model: ServedModel) -> SamplingParams:
    """Lets the sampler itself say what it takes."""
    top_k = request.top_k or 0
    _require(top_k <= MAX_SAMPLING_TOP_K, "top_k", top_k, f"0 (off) to {MAX_SAMPLING_TOP_K}")
    count = len(request.logit_bias)
    limit = f"at most {MAX_LOGIT_BIASES} ids"
    _require(count <= MAX_LOGIT_BIASES, "logit_bias", f"{count} ids", limit)
    for token in request.logit_bias:
        _check_token_id(f"logit_bias[{token}]", token, model)
    default = SamplingParams()
    return SamplingParams(
        temperature=_or(request.temperature, default.temperature),
        top_k=top_k,
        top_p=_or(request.top_p, default.top_p),
        min_p=_or(request.min_p, default.min_p),
        seed=request.seed or 0,
        logit_bias=tuple(sorted(request.logit_bias.items())),
        repetition_penalty=_or(request.repetition_penalty, default.repetition_penalty),
        presence_penalty=_or(request.presence_penalty, default.presence_penalty),
        frequency_penalty=_or(request.frequency_penalty, default.frequency_penalty),
        min_tokens=request.min_tokens or 0,
    )


def _check_stop_tokens(token_ids: Sequence[int], model: ServedModel) -> None:
    limit = f"at most {MAX_STOP_TOKEN_IDS} ids"
    _require(len(token_ids) <= MAX_STOP_TOKEN_IDS, "stop_token_ids", f"{len(token_ids)} ids", limit)
    for index, token in enumerate(token_ids):
        _check_token_id(f"stop_token_ids[{index}]", token, model)


def _check_logprobs(num_logprobs: int | None) -> None:
    if num_logprobs is not None:
        limit = f"an integer in [0, {MAX_LOGPROBS}]"
        _require(0 <= num_logprobs <= MAX_LOGPROBS, "logprobs", num_logprobs, limit)


def _check_token_id(field: str, token: int, model: ServedModel) -> None:
    if not 0 <= token < model.vocab_size:
        raise InvalidArgumentError(field, token, f"an id in [0, {model.vocab_size})")


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def _check_text(field: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            field, "text with lone surrogates", "text that UTF-8 can carry"
        ) from None


def _require(condition: bool, field: str, value: object, limit: str) -> None:
    if not condition:
        raise InvalidArgumentError(field, value, limit)


def _echo(text: str) -> str:
    """Returns a name as it may stand in a one-line message."""
    shown = text[:_MAX_ECHO_LENGTH].encode("unicode_escape").decode("ascii")
    return shown if len(text) <= _MAX_ECHO_LENGTH else f"{shown}…"
