"""What a message cannot carry is refused by name before it is sent."""

import subprocess
import sys
from typing import Any

import pytest

from arborist.client import Message, Speculation
from arborist.client.generation_wire import write_request
from arborist.core.errors import InvalidArgumentError

PLAIN: dict[str, Any] = {
    "model": "",
    "max_tokens": None,
    "temperature": None,
    "top_k": None,
    "top_p": None,
    "min_p": None,
    "seed": None,
    "stop": (),
    "speculation": None,
    "ignore_eos": False,
}


@pytest.mark.parametrize(
    ("prompt", "change", "field", "limit"),
    [
        ([1, 2**31], {}, "token_ids[1]", "32-bit"),
        ([1, "a"], {}, "token_ids[1]", "32-bit"),
        ([1, Message("user", "a")], {}, "prompt", "messages"),
        ("a\udc80", {}, "prompt", "UTF-8"),
        ([Message("user", "\udc80")], {}, "messages[0].content", "UTF-8"),
        ("a", {"max_tokens": 2**31}, "max_tokens", "32-bit"),
        ("a", {"seed": -1}, "seed", "64-bit"),
        ("a", {"seed": 2**64}, "seed", "64-bit"),
        ("a", {"temperature": "hot"}, "temperature", "number"),
        ("a", {"presence_penalty": "much"}, "presence_penalty", "number"),
        ("a", {"logit_bias": {2**31: 1.0}}, "logit_bias[2147483648]", "32-bit"),
        ("a", {"logit_bias": {5: "much"}}, "logit_bias[5]", "number"),
        ("a", {"min_tokens": 2**31}, "min_tokens", "32-bit"),
        ("a", {"stop_token_ids": [7, 2**31]}, "stop_token_ids[1]", "32-bit"),
        ("a", {"logprobs": 0.5}, "logprobs", "32-bit"),
        ("a", {"json_schema": "\udc80"}, "json_schema", "UTF-8"),
        ("a", {"json_schema": {"const": object()}}, "json_schema", "JSON can carry"),
        ("a", {"json_schema": {}, "json_object": True}, "json_object", "false with json_schema"),
        ("a", {"stop": ["x", 3]}, "stop[1]", "UTF-8"),
        ("a", {"speculation": Speculation(depth=2**40)}, "speculation.depth", "32-bit"),
        ("a", {"speculation": Speculation(policy="\udc80")}, "speculation.policy", "UTF-8"),
    ],
)
def test_what_no_message_can_carry_is_refused(prompt, change, field: str, limit: str) -> None:
    """The error has the server's form; it never repeats text."""
    with pytest.raises(InvalidArgumentError) as caught:
        write_request(prompt, **{**PLAIN, **change})

    assert caught.value.metadata["field"] == field
    assert limit in caught.value.metadata["limit"]
    assert "\udc80" not in caught.value.message


def test_unset_fields_stay_unset() -> None:
    """The server's defaults apply to what a client does not say."""
    message = write_request("a", **PLAIN)

    assert message.text == "a"
    assert not message.HasField("max_tokens")
    assert not message.HasField("sampling")
    assert not message.HasField("speculation")


def test_an_empty_list_of_ids_reaches_the_server_as_such() -> None:
    """It is the server that refuses an empty prompt."""
    assert write_request([], **PLAIN).WhichOneof("prompt") == "token_ids"


def test_a_schema_is_sent_as_text() -> None:
    """A mapping in its own order, text as it is; any object is a format of its own."""
    mapping = write_request("a", **PLAIN, json_schema={"b": 1, "a": "é"})
    assert mapping.response_format.json_schema == '{"b": 1, "a": "é"}'
    text = write_request("a", **PLAIN, json_schema=" {}")
    assert text.response_format.json_schema == " {}"
    assert not write_request("a", **PLAIN).HasField("response_format")
    free = write_request("a", **PLAIN, json_object=True)
    assert free.response_format.WhichOneof("format") == "json_object"


def test_one_stop_string_is_one_stop_string() -> None:
    """A bare string is not taken apart."""
    assert list(write_request("a", **{**PLAIN, "stop": "END"}).stop) == ["END"]


def test_the_sdk_needs_neither_torch_nor_ray() -> None:
    """A client's process stays small."""
    script = (
        "import sys, arborist.client\n"
        "heavy = {'ray', 'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
