"""The validator's table: every limit at −1, at the limit, and at +1."""

import math
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.api.tokenizers import byte_level_tokenizer

from arborist.common.config import ControllerConfig, SpeculationConfig
from arborist.core.errors import (
    ErrorCode,
    InvalidArgumentError,
    UnavailableError,
    UnknownModelError,
)
from arborist.orchestrator.api.incoming import (
    ChatPrompt,
    ChatTurn,
    IncomingRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    TextPrompt,
    TokenPrompt,
)
from arborist.orchestrator.api.validator import RequestLimits, Validator
from arborist.orchestrator.generation import ServedModel, SpeculationOptions

MODEL = ServedModel("tiny", 100, 266, (0,), created_s=1, speculation=True)
LIMITS = RequestLimits(
    max_prompt_tokens=50,
    max_max_tokens=80,
    default_max_tokens=60,
    max_stop_strings=2,
    max_stop_bytes=5,
    max_schema_bytes=30,
    max_schema_depth=3,
    max_depth=6,
    max_top_k=8,
    max_num_draft_tokens=40,
)
PLAIN = IncomingRequest(TokenPrompt((1, 2, 3)))


@pytest.fixture(scope="module")
def validator() -> Validator:
    """A validator with a tokenizer that has a chat template."""
    return Validator(LIMITS, byte_level_tokenizer())


def tree(**options: Any) -> SpeculationOptions:
    """What a request says about speculation."""
    return SpeculationOptions(**options)


ACCEPTED: dict[str, dict[str, Any]] = {
    "prompt of one token": {"prompt": TokenPrompt((0,))},
    "prompt at its limit": {"prompt": TokenPrompt((1,) * 50), "max_tokens": 50},
    "prompt under its limit": {"prompt": TokenPrompt((1,) * 49)},
    "last token id": {"prompt": TokenPrompt((0, 265))},
    "text": {"prompt": TextPrompt("a")},
    "chat": {"prompt": ChatPrompt((ChatTurn("system", "a"), ChatTurn("user", "")))},
    "max_tokens 1": {"max_tokens": 1},
    "max_tokens 79": {"max_tokens": 79},
    "max_tokens at its limit": {"max_tokens": 80},
    "context filled to one": {"prompt": TokenPrompt((1,) * 19), "max_tokens": 80},
    "context filled": {"prompt": TokenPrompt((1,) * 20), "max_tokens": 80},
    "model by name": {"model": "tiny"},
    "temperature 0": {"temperature": 0.0},
    "temperature 100": {"temperature": 100.0},
    "top_k 0": {"top_k": 0},
    "top_k over the vocabulary": {"top_k": 1000},
    "top_p 1": {"top_p": 1.0},
    "top_p tiny": {"top_p": 1e-9},
    "min_p 0": {"min_p": 0.0},
    "min_p 1": {"min_p": 1.0},
    "seed 0": {"seed": 0},
    "largest seed": {"seed": 2**64 - 1},
    "repetition_penalty at its least": {"repetition_penalty": 0.01},
    "repetition_penalty at its limit": {"repetition_penalty": 2.0},
    "presence_penalty at its least": {"presence_penalty": -2.0},
    "presence_penalty at its limit": {"presence_penalty": 2.0},
    "frequency_penalty at its least": {"frequency_penalty": -2.0},
    "frequency_penalty at its limit": {"frequency_penalty": 2.0},
    "logit_bias at its limits": {"logit_bias": {0: -100.0, 265: 100.0}},
    "min_tokens 0": {"min_tokens": 0},
    "min_tokens at max_tokens": {"min_tokens": 7, "max_tokens": 7},
    "min_tokens at the default": {"min_tokens": 60},
    "stop_token_ids at their count": {"stop_token_ids": (265,) * 64},
    "logprobs 0": {"num_logprobs": 0},
    "logprobs at their limit": {"num_logprobs": 20},
    "any JSON object": {"response_format": JsonObjectFormat()},
    "a schema at its size": {"response_format": JsonSchemaFormat("{" + " " * 28 + "}")},
    "a schema at its depth": {"response_format": JsonSchemaFormat('{"enum": [[]]}')},
    "stops at their count": {"stop": ("a", "b")},
    "stop at its size": {"stop": ("12345",)},
    "stop of two-byte characters": {"stop": ("éé",)},
    "depth at its limit": {"speculation": tree(depth=6)},
    "depth 1": {"speculation": tree(depth=1)},
    "tree top_k at its limit": {"speculation": tree(top_k=8)},
    "tree top_k 1": {"speculation": tree(top_k=1)},
    "num_draft_tokens at its limit": {"speculation": tree(num_draft_tokens=40)},
    "num_draft_tokens 1": {"speculation": tree(num_draft_tokens=1)},
    "speculation off": {"speculation": tree(enabled=False)},
}

# Change, then field, value and what the limit says.
REFUSED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "no prompt": ({"prompt": None}, "prompt", "absent", "text, token ids or messages"),
    "empty text": ({"prompt": TextPrompt("")}, "prompt", "0 characters", "at least 1"),
    "empty ids": ({"prompt": TokenPrompt(())}, "prompt", "0 tokens", "at least 1"),
    "no messages": ({"prompt": ChatPrompt(())}, "messages", "0 messages", "at least 1"),
    "bad role": (
        {"prompt": ChatPrompt((ChatTurn("user", "a"), ChatTurn("tool", "b")))},
        "messages[1].role",
        "tool",
        "one of system, user, assistant",
    ),
    "refused by the template": (
        {"prompt": ChatPrompt((ChatTurn("user", "a"), ChatTurn("system", "b")))},
        "messages",
        "2 messages",
        "system comes first",
    ),
    "surrogate in text": ({"prompt": TextPrompt("a\udc80")}, "prompt", "surrogates", "UTF-8"),
    "surrogate in chat": (
        {"prompt": ChatPrompt((ChatTurn("user", "\ud800"),))},
        "messages[0].content",
        "surrogates",
        "UTF-8",
    ),
    "prompt over its limit": ({"prompt": TokenPrompt((1,) * 51)}, "prompt", "51 tokens", "50"),
    "text over the limit": ({"prompt": TextPrompt("x" * 51)}, "prompt", "51 tokens", "50"),
    "negative id": ({"prompt": TokenPrompt((1, -1))}, "token_ids[1]", "-1", "[0, 266)"),
    "id over the vocabulary": ({"prompt": TokenPrompt((266,))}, "token_ids[0]", "266", "[0, 266)"),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens", "0", "[1, 80]"),
    "max_tokens negative": ({"max_tokens": -1}, "max_tokens", "-1", "[1, 80]"),
    "max_tokens 81": ({"max_tokens": 81}, "max_tokens", "81", "[1, 80]"),
    "context overrun by one": (
        {"prompt": TokenPrompt((1,) * 21), "max_tokens": 80},
        "prompt + max_tokens",
        "21 + 80 = 101",
        "at most 100",
    ),
    "temperature negative": (
        {"temperature": -1e-9},
        "temperature",
        "-1e-09",
        "0 or a number in [1e-06, 100]",
    ),
    "temperature NaN": (
        {"temperature": math.nan},
        "temperature",
        "nan",
        "0 or a number in [1e-06, 100]",
    ),
    "temperature infinite": (
        {"temperature": math.inf},
        "temperature",
        "inf",
        "0 or a number in [1e-06, 100]",
    ),
    "temperature over 100": (
        {"temperature": 100.001},
        "temperature",
        "100.001",
        "0 or a number in [1e-06, 100]",
    ),
    "top_k negative": ({"top_k": -1}, "top_k", "-1", "0"),
    "top_k over 32 bits": ({"top_k": 2**31}, "top_k", "2147483648", "2147483647"),
    "top_p 0": ({"top_p": 0.0}, "top_p", "0.0", "(0, 1]"),
    "top_p over 1": ({"top_p": 1.0000001}, "top_p", "1.0000001", "(0, 1]"),
    "top_p NaN": ({"top_p": math.nan}, "top_p", "nan", "(0, 1]"),
    "min_p negative": ({"min_p": -0.1}, "min_p", "-0.1", "[0, 1]"),
    "min_p over 1": ({"min_p": 1.1}, "min_p", "1.1", "[0, 1]"),
    "min_p NaN": ({"min_p": math.nan}, "min_p", "nan", "[0, 1]"),
    "seed negative": ({"seed": -1}, "seed", "-1", "64-bit"),
    "seed over 64 bits": ({"seed": 2**64}, "seed", str(2**64), "64-bit"),
    "repetition_penalty 0": (
        {"repetition_penalty": 0.0},
        "repetition_penalty",
        "0.0",
        "[0.01, 2]",
    ),
    "repetition_penalty over 2": (
        {"repetition_penalty": 2.001},
        "repetition_penalty",
        "2.001",
        "[0.01, 2]",
    ),
    "repetition_penalty NaN": (
        {"repetition_penalty": math.nan},
        "repetition_penalty",
        "nan",
        "[0.01, 2]",
    ),
    "presence_penalty under": (
        {"presence_penalty": -2.01},
        "presence_penalty",
        "-2.01",
        "[-2, 2]",
    ),
    "presence_penalty over": ({"presence_penalty": 2.01}, "presence_penalty", "2.01", "[-2, 2]"),
    "frequency_penalty infinite": (
        {"frequency_penalty": math.inf},
        "frequency_penalty",
        "inf",
        "[-2, 2]",
    ),
    "frequency_penalty NaN": (
        {"frequency_penalty": math.nan},
        "frequency_penalty",
        "nan",
        "[-2, 2]",
    ),
    "bias under": ({"logit_bias": {5: -100.5}}, "logit_bias[5]", "-100.5", "[-100, 100]"),
    "bias over": ({"logit_bias": {1: 0.0, 5: 100.5}}, "logit_bias[5]", "100.5", "[-100, 100]"),
    "bias NaN": ({"logit_bias": {5: math.nan}}, "logit_bias[5]", "nan", "[-100, 100]"),
    "bias of no token": ({"logit_bias": {266: 1.0}}, "logit_bias[266]", "266", "[0, 266)"),
    "bias of a negative id": ({"logit_bias": {-1: 1.0}}, "logit_bias[-1]", "-1", "[0, 266)"),
    "biases over their count": (
        {"logit_bias": dict.fromkeys(range(301), 1.0)},
        "logit_bias",
        "301 ids",
        "at most 300",
    ),
    "a schema over its size": (
        {"response_format": JsonSchemaFormat("{" + " " * 29 + "}")},
        "response_format.json_schema",
        "31 bytes",
        "1 to 30 bytes",
    ),
    "a schema over its depth": (
        {"response_format": JsonSchemaFormat('{"enum": [[[]]]}')},
        "response_format.json_schema",
        "nested 4 deep",
        "at most 3 deep",
    ),
    "no schema": (
        {"response_format": JsonSchemaFormat("")},
        "response_format.json_schema",
        "0 bytes",
        "1 to 30 bytes",
    ),
    "a schema that is no JSON": (
        {"response_format": JsonSchemaFormat("{a: 1}")},
        "response_format.json_schema",
        "6 bytes",
        "valid JSON",
    ),
    "a schema that is no object": (
        {"response_format": JsonSchemaFormat("true")},
        "response_format.json_schema",
        "4 bytes",
        "a JSON object",
    ),
    "surrogate in a schema": (
        {"response_format": JsonSchemaFormat("\udc80")},
        "response_format.json_schema",
        "surrogates",
        "UTF-8",
    ),
    "a schema without an end": (
        {"response_format": JsonObjectFormat(), "ignore_eos": True},
        "ignore_eos",
        "true",
        "false with response_format",
    ),
    "min_tokens negative": ({"min_tokens": -1}, "min_tokens", "-1", "[0,"),
    "min_tokens over max_tokens": (
        {"min_tokens": 8, "max_tokens": 7},
        "min_tokens",
        "8",
        "[0, 7], max_tokens",
    ),
    "min_tokens over the default": ({"min_tokens": 61}, "min_tokens", "61", "[0, 60]"),
    "stop tokens over their count": (
        {"stop_token_ids": (1,) * 65},
        "stop_token_ids",
        "65 ids",
        "at most 64",
    ),
    "stop token over the vocabulary": (
        {"stop_token_ids": (1, 266)},
        "stop_token_ids[1]",
        "266",
        "[0, 266)",
    ),
    "logprobs negative": ({"num_logprobs": -1}, "logprobs", "-1", "[0, 20]"),
    "logprobs 21": ({"num_logprobs": 21}, "logprobs", "21", "[0, 20]"),
    "stops over their count": ({"stop": ("a", "b", "c")}, "stop", "3 strings", "at most 2"),
    "stop empty": ({"stop": ("a", "")}, "stop[1]", "0 bytes", "1 to 5 bytes"),
    "stop over its size": ({"stop": ("123456",)}, "stop[0]", "6 bytes", "1 to 5 bytes"),
    "stop over its size in bytes": ({"stop": ("ééé",)}, "stop[0]", "6 bytes", "1 to 5 bytes"),
    "depth 0": ({"speculation": tree(depth=0)}, "speculation.depth", "0", "[1, 6]"),
    "depth 7": ({"speculation": tree(depth=7)}, "speculation.depth", "7", "[1, 6]"),
    "tree top_k 0": ({"speculation": tree(top_k=0)}, "speculation.top_k", "0", "[1, 8]"),
    "tree top_k 9": ({"speculation": tree(top_k=9)}, "speculation.top_k", "9", "[1, 8]"),
    "num_draft_tokens 0": (
        {"speculation": tree(num_draft_tokens=0)},
        "speculation.num_draft_tokens",
        "0",
        "[1, 40]",
    ),
    "num_draft_tokens 41": (
        {"speculation": tree(num_draft_tokens=41)},
        "speculation.num_draft_tokens",
        "41",
        "[1, 40]",
    ),
    "unknown policy": (
        {"speculation": tree(policy="medusa\n")},
        "speculation.policy",
        "medusa\\n",
        "eagle1_static",
    ),
    "tree size with speculation off": (
        {"speculation": tree(enabled=False, depth=7)},
        "speculation.depth",
        "7",
        "[1, 6]",
    ),
}


@pytest.mark.parametrize("case", sorted(ACCEPTED))
def test_what_is_within_the_limits_passes(validator: Validator, case: str) -> None:
    """A value at its limit or under it is taken."""
    valid = validator.validate(replace(PLAIN, **ACCEPTED[case]), [MODEL])

    assert valid.generation.model == "tiny"
    assert len(valid.generation.prompt_token_ids) + valid.generation.max_tokens <= 100


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_over_a_limit_is_refused_by_name(validator: Validator, case: str) -> None:
    """The error names field, value and limit in one line."""
    change, field, value, limit = REFUSED[case]

    with pytest.raises(InvalidArgumentError) as caught:
        validator.validate(replace(PLAIN, **change), [MODEL])

    error = caught.value
    assert error.metadata["field"] == field
    assert value in error.metadata["value"]
    assert limit in error.metadata["limit"]
    assert field in error.message
    assert value in error.message
    assert limit in error.message
    assert "\n" not in error.message


@pytest.mark.parametrize("name", ["other", "x" * 500, "two\nlines"])
def test_an_unknown_model_is_refused_with_those_served(validator: Validator, name: str) -> None:
    """The error says what to ask for; it does not repeat a long name."""
    models = [MODEL, replace(MODEL, id="second")]

    with pytest.raises(UnknownModelError, match="second, tiny") as caught:
        validator.validate(replace(PLAIN, model=name), models)

    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert caught.value.metadata["field"] == "model"
    assert len(caught.value.message) < 200
    assert "\n" not in caught.value.message


def test_no_name_with_several_models_is_refused(validator: Validator) -> None:
    """Empty means the only one."""
    with pytest.raises(UnknownModelError, match=r"empty.*second, tiny"):
        validator.validate(PLAIN, [MODEL, replace(MODEL, id="second")])


def test_no_model_yet_is_unavailable(validator: Validator) -> None:
    """A client may come again."""
    with pytest.raises(UnavailableError) as caught:
        validator.validate(PLAIN, [])

    assert caught.value.retry_after_ms > 0


def test_unset_max_tokens_takes_the_default_or_what_is_left(validator: Validator) -> None:
    """The default never makes a request too long."""
    short = validator.validate(PLAIN, [MODEL])
    long = validator.validate(replace(PLAIN, prompt=TokenPrompt((1,) * 45)), [MODEL])

    assert short.generation.max_tokens == 60
    assert long.generation.max_tokens == 55


def test_as_many_biases_as_allowed_pass() -> None:
    """300 ids of a larger vocabulary, given in any order."""
    bias = dict.fromkeys(range(299, -1, -1), 0.5)
    valid = Validator(LIMITS, None).validate(
        replace(PLAIN, logit_bias=bias), [replace(MODEL, vocab_size=1000)]
    )

    assert valid.generation.sampling.logit_bias == tuple((token, 0.5) for token in range(300))


def test_a_prompt_leaves_room_for_one_token() -> None:
    """A prompt that fills the context is refused even when the server would take it."""
    validator = Validator(RequestLimits(), None)

    validator.validate(replace(PLAIN, prompt=TokenPrompt((1,) * 99)), [MODEL])
    with pytest.raises(InvalidArgumentError, match="100 tokens: must be at most 99"):
        validator.validate(replace(PLAIN, prompt=TokenPrompt((1,) * 100)), [MODEL])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": TextPrompt("a")}, "prompt"),
        ({"prompt": ChatPrompt((ChatTurn("user", "a"),))}, "messages"),
        ({"stop": ("a",)}, "stop"),
    ],
)
def test_a_model_without_tokenizer_takes_token_ids_only(change: dict, field: str) -> None:
    """Whatever needs text says that there is no tokenizer."""
    validator = Validator(LIMITS, None)

    assert validator.validate(PLAIN, [MODEL]).generation.prompt_token_ids == (1, 2, 3)
    with pytest.raises(InvalidArgumentError, match="no tokenizer") as caught:
        validator.validate(replace(PLAIN, **change), [MODEL])
    assert caught.value.metadata["field"] == field


def test_a_model_without_chat_template_refuses_messages() -> None:
    """It says what is missing."""
    validator = Validator(LIMITS, byte_level_tokenizer(chat_template=None))

    with pytest.raises(InvalidArgumentError, match="no chat template"):
        validator.validate(replace(PLAIN, prompt=ChatPrompt((ChatTurn("user", "a"),))), [MODEL])


def test_everything_a_request_says_reaches_the_controller(validator: Validator) -> None:
    """Nothing is lost or changed on the way."""
    request = IncomingRequest(
        prompt=TextPrompt("abc"),
        max_tokens=7,
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        seed=42,
        stop=("x",),
        speculation=tree(enabled=True, depth=2, top_k=3, num_draft_tokens=4, policy="chain"),
        traceparent=f"00-{'a' * 32}-{'b' * 16}-01",
    )

    valid = validator.validate(request, [MODEL])
    generation = valid.generation

    assert byte_level_tokenizer().decode(generation.prompt_token_ids) == "abc"
    assert (generation.max_tokens, generation.seed) == (7, 42)
    sampling = generation.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (
        0.5,
        3,
        0.9,
        0.1,
    )
    assert generation.speculation == request.speculation
    assert generation.traceparent == request.traceparent
    assert valid.stop == ("x",)
    assert valid.eos_token_ids == {0}


def test_eos_is_ignored_on_request_and_a_bad_traceparent_always(validator: Validator) -> None:
    """Neither is an error."""
    valid = validator.validate(replace(PLAIN, ignore_eos=True, traceparent="nonsense"), [MODEL])

    assert valid.generation.ignore_eos
    assert valid.eos_token_ids == frozenset()
    assert valid.generation.traceparent == ""


def test_the_limits_come_from_the_configuration() -> None:
    """The default limits are those of the default configuration."""
    assert RequestLimits.from_config(ControllerConfig(), SpeculationConfig()) == RequestLimits()
    changed = RequestLimits.from_config(
        ControllerConfig(max_stop_strings=9), SpeculationConfig(max_depth=8)
    )
    assert (changed.max_stop_strings, changed.max_depth) == (9, 8)
