"""Sends a load through the HTTP API, as OpenAI's clients would: streams of server-sent events."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Self

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from arborist.cli.bench_serve.load_request import LoadRequest
from arborist.cli.bench_serve.sender import Delivery, RoundTotals
from arborist.client.call import key_metadata
from arborist.client.completion import ModelCard
from arborist.client.prompt import Message
from arborist.common.errors import restore_error
from arborist.core.errors import ArboristError, DeadlineError, ErrorCode, UnavailableError

DEFAULT_HTTP_ADDRESS = "127.0.0.1:8000"
# Longest line of a stream: a chunk has the tokens of one round.
_MAX_LINE_BYTES = 1 << 20
_DATA, _DONE = b"data: ", b"[DONE]"
_MODELS_TIMEOUT_S = 30.0
# What reading an answer meets that is no JSON, or not the objects it should be.
_OF_ANOTHER_SHAPE = (ValueError, KeyError, TypeError, AttributeError)


class HttpSender:
    """Sends to one server; implements `sender.Sender`."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str = "") -> None:
        """Wraps a session.

        Args:
            session: Made by `http_sender`; stays the caller's.
            url: Of the server, without a path.
            model: Served name; empty = the only one.
        """
        self._session = session
        self._url = url
        self._model = model

    @classmethod
    @asynccontextmanager
    async def connected(cls, address: str, api_key: str | None, model: str) -> AsyncIterator[Self]:
        """Makes one with connections of its own, as many as there are requests under way.

        Args:
            address: host:port, or a URL without a path.
            api_key: Sent as `authorization: Bearer …`; None = none.
            model: Served name; empty = the only one.

        Raises:
            InvalidArgumentError: No header can carry the key; the message does not repeat it.
        """
        url = address.rstrip("/") if "://" in address else f"http://{address}"
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers=dict(key_metadata(api_key)),
            read_bufsize=_MAX_LINE_BYTES,
        ) as session:
            yield cls(session, url, model)

    async def stream(self, request: LoadRequest) -> AsyncGenerator[Delivery | RoundTotals, None]:
        """Sends a request and yields a Delivery per round, and the totals at its end.

        Raises:
            ArboristError: The server refused or could not go on.
        """
        path, body = _body(request, self._model)
        timeout = aiohttp.ClientTimeout(total=request.timeout_s)
        begun = False
        async with (
            self._failures(),
            self._session.post(self._url + path, json=body, timeout=timeout) as reply,
        ):
            if reply.status != HTTPStatus.OK:
                raise await _refusal(reply)
            async for chunk in _events(reply):
                for one in _read(chunk, begun):
                    begun = True
                    yield one

    async def list_models(self) -> list[ModelCard]:
        """Returns the models served.

        Raises:
            ArboristError: The server could not answer.
        """
        timeout = aiohttp.ClientTimeout(total=_MODELS_TIMEOUT_S)
        async with (
            self._failures(),
            self._session.get(f"{self._url}/v1/models", timeout=timeout) as reply,
        ):
            if reply.status != HTTPStatus.OK:
                raise await _refusal(reply)
            return [
                ModelCard(one["id"], one["max_model_len"], one["vocab_size"], one["created"], True)
                for one in (await reply.json())["data"]
            ]

    @asynccontextmanager
    async def _failures(self) -> AsyncIterator[None]:
        """Makes what the connection reports errors of the table."""
        try:
            yield
        except TimeoutError:
            raise DeadlineError("the request outlived its deadline") from None
        except aiohttp.ClientConnectorError:
            raise UnavailableError(f"no server answers at {self._url}") from None
        except (aiohttp.ClientError, HttpProcessingError, *_OF_ANOTHER_SHAPE):
            # HttpProcessingError: a line that is too long.
            raise UnavailableError(
                f"the connection to {self._url} was lost, or it speaks another protocol"
            ) from None


def _body(request: LoadRequest, model: str) -> tuple[str, dict[str, Any]]:
    """Returns path and body; messages need the path that has a chat template."""
    body: dict[str, Any] = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "ignore_eos": request.ignore_eos,
        "stream": True,
        "stream_options": {"include_usage": True},
        # A text alone does not say how many tokens it took.
        "return_token_ids": True,
    }
    if model:
        body["model"] = model
    if request.seed is not None:
        body["seed"] = request.seed
    if request.speculation is not None:
        given = dataclasses.asdict(request.speculation)
        body["speculation"] = {name: one for name, one in given.items() if one is not None}
    prompt = request.prompt
    if isinstance(prompt, str):
        return "/v1/completions", {**body, "prompt": prompt}
    messages = [one for one in prompt if isinstance(one, Message)]
    if messages:
        asked = [{"role": one.role, "content": one.content} for one in messages]
        return "/v1/chat/completions", {**body, "messages": asked}
    return "/v1/completions", {**body, "prompt": list(prompt)}


async def _events(reply: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """Yields the objects of a stream.

    Raises:
        ArboristError: The server could not go on, or the stream has no end.
    """
    async for line in reply.content:
        if not line.startswith(_DATA):
            continue
        data = line.removeprefix(_DATA).strip()
        if data == _DONE:
            return
        chunk = json.loads(data)
        if "error" in chunk:
            error = chunk["error"]
            if not isinstance(error, dict):
                raise UnavailableError("the server ended the stream without saying why")
            raise _restored(error)
        yield chunk
    raise UnavailableError("the stream ended before its end mark")


def _read(chunk: dict[str, Any], begun: bool) -> list[Delivery | RoundTotals]:
    """Returns what a chunk says about tokens and rounds.

    A round commits what it accepted and a bonus token; of one that was cut at the end the totals
    know better.
    """
    found: list[Delivery | RoundTotals] = []
    for choice in chunk["choices"]:
        count = len(choice.get("token_ids") or ())
        if count:
            found.append(Delivery(count, count - 1 if begun or found else None, 0))
    told = (chunk.get("metrics") or {}).get("speculative_decoding")
    if told is not None:
        found.append(
            RoundTotals(
                int(told["num_spec_steps"]),
                int(told["num_accepted_draft_tokens"]),
                int(told["num_draft_tokens"]),
            )
        )
    return found


async def _refusal(reply: aiohttp.ClientResponse) -> ArboristError:
    try:
        error = (await reply.json())["error"]
    except (aiohttp.ClientError, *_OF_ANOTHER_SHAPE):
        error = None
    if not isinstance(error, dict):
        return UnavailableError(f"the server answered {reply.status} without saying why")
    retry_s = reply.headers.get("Retry-After", "")
    return _restored(error, 1000 * int(retry_s) if retry_s.isdecimal() else 0)


def _restored(error: dict[str, Any], retry_after_ms: int = 0) -> ArboristError:
    metadata = {"field": str(error["param"])} if error.get("param") else {}
    code, reason = ErrorCode.INTERNAL.value, str(error.get("code") or "")
    return restore_error(code, reason, str(error.get("message")), metadata, retry_after_ms)
