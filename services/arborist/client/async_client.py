"""The asyncio client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from arborist.client.call import (
    DEFAULT_ADDRESS,
    call_metadata,
    channel_options,
    client_error,
    key_metadata,
)
from arborist.client.completion import Completion, ModelCard, RoundEvent, Started, Summary
from arborist.client.generation_wire import read_models, write_request
from arborist.client.progress import Progress
from arborist.client.prompt import JsonSchema, Prompt, Speculation
from arborist.v1 import generation_pb2 as pb
from arborist.v1 import generation_pb2_grpc as pb_grpc


class AsyncGenerationStream:
    """An output as it comes: iterate over its rounds; `close` or leave the `with` to cancel.

    Everything received so far stays readable, also after an error or a cancellation.
    """

    def __init__(
        self, call: grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse], address: str
    ) -> None:
        """Takes over a call.

        Args:
            call: Under way.
            address: Where it went, for messages.
        """
        self._call = call
        self._address = address
        self._progress = Progress()
        self._closed = False

    def __aiter__(self) -> AsyncIterator[RoundEvent]:
        """Returns itself."""
        return self

    async def __anext__(self) -> RoundEvent:
        """Returns the next round.

        Raises:
            ArboristError: The server refused or could not go on.
        """
        if self._closed:
            raise StopAsyncIteration
        try:
            async for message in self._call:
                round_ = self._progress.take(message)
                if round_ is not None:
                    return round_
        except grpc.RpcError as error:
            self._closed = True
            begun = self._progress.started is not None
            raise client_error(error, self._address, begun=begun) from None
        self._closed = True
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        """Returns itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Cancels what has not come yet."""
        self.close()

    @property
    def started(self) -> Started | None:
        """Returns what the server decided; None before the first round."""
        return self._progress.started

    @property
    def rounds(self) -> Sequence[RoundEvent]:
        """Returns the rounds so far."""
        return self._progress.rounds

    @property
    def text(self) -> str:
        """Returns the text so far."""
        return self._progress.text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Returns the tokens so far."""
        return self._progress.token_ids

    @property
    def summary(self) -> Summary | None:
        """Returns how the output ended; None before its end."""
        return self._progress.summary

    async def completion(self) -> Completion:
        """Reads to the end.

        Raises:
            ArboristError: The server refused or could not go on.
        """
        async for _ in self:
            pass
        return self._progress.completion()

    def close(self) -> None:
        """Cancels; the server stops within a round. Safe to call twice, and after the end."""
        self._closed = True
        self._call.cancel()


class AsyncClient:
    """Talks to one server; one event loop owns it."""

    def __init__(self, address: str = DEFAULT_ADDRESS, *, api_key: str | None = None) -> None:
        """Prepares; nothing is sent before the first call.

        Args:
            address: host:port of the server's gRPC API.
            api_key: Sent with every call as `authorization: Bearer …`, in the clear; None = none.

        Raises:
            InvalidArgumentError: A key that no call can carry.
        """
        self._key = key_metadata(api_key)
        self._address = address
        self._channel = grpc.aio.insecure_channel(address, options=channel_options(address))
        self._stub: pb_grpc.GenerationServiceAsyncStub = pb_grpc.GenerationServiceStub(
            self._channel
        )

    async def __aenter__(self) -> Self:
        """Returns itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes."""
        await self.aclose()

    async def aclose(self) -> None:
        """Cancels what is under way and disconnects."""
        await self._channel.close()

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        min_tokens: int | None = None,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        logprobs: int | None = None,
        speculation: Speculation | None = None,
        model: str = "",
        ignore_eos: bool = False,
        json_schema: JsonSchema | None = None,
        json_object: bool = False,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> AsyncGenerationStream:
        """Starts a completion.

        Args:
            prompt: Text, token ids, or messages to render with the model's chat template.
            max_tokens: Most tokens to generate, >= 1; None = the server's default.
            temperature: 0 = greedy (the default), at most 100.
            top_k: Keep the most probable tokens; 0 = all.
            top_p: Nucleus mass in (0, 1].
            min_p: Minimum probability relative to the best token, in [0, 1].
            seed: 64 bits; None = the server draws one and reports it in `started`.
            repetition_penalty: On tokens of prompt and output, in [0.01, 2]; 1 = off.
            presence_penalty: On tokens of the output, once, in [-2, 2].
            frequency_penalty: On tokens of the output, per occurrence, in [-2, 2].
            logit_bias: Added to the logits of token ids, each in [-100, 100].
            min_tokens: Tokens before which no end-of-sequence or stop token comes.
            stop: Strings the output ends before.
            stop_token_ids: Further tokens that end the output, as an end-of-sequence token does.
            logprobs: Raw log-probs of every token and of this many of the most probable ones, in
                [0, 20]; None = none.
            speculation: Drafting; None = the server's default. Never changes the output.
            model: Served name; empty = the only one.
            ignore_eos: Do not end at end-of-sequence tokens.
            json_schema: The output is JSON that fits this schema; when `max_tokens` or `stop` cut
                it, the beginning of it.
            json_object: The output is any JSON object, or the beginning of one.
            timeout_s: Seconds until the call fails with DeadlineError; None = no limit.
            traceparent: W3C trace context of the caller's span.
        Returns:
            Its rounds as they come. What the server refuses is raised by the first iteration.
        Raises:
            InvalidArgumentError: A value that no message can carry.
        """
        request = write_request(
            prompt,
            model=model,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
            min_tokens=min_tokens,
            stop=stop,
            stop_token_ids=stop_token_ids,
            logprobs=logprobs,
            speculation=speculation,
            ignore_eos=ignore_eos,
            json_schema=json_schema,
            json_object=json_object,
        )
        call = self._stub.Generate(
            request, timeout=timeout_s, metadata=call_metadata(self._key, traceparent)
        )
        return AsyncGenerationStream(call, self._address)

    async def complete(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        min_tokens: int | None = None,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        logprobs: int | None = None,
        speculation: Speculation | None = None,
        model: str = "",
        ignore_eos: bool = False,
        json_schema: JsonSchema | None = None,
        json_object: bool = False,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> Completion:
        """Generates to the end; the arguments are those of `generate`.

        Raises:
            ArboristError: The server refused or could not go on.
        """
        async with self.generate(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
            min_tokens=min_tokens,
            stop=stop,
            stop_token_ids=stop_token_ids,
            logprobs=logprobs,
            speculation=speculation,
            model=model,
            ignore_eos=ignore_eos,
            json_schema=json_schema,
            json_object=json_object,
            timeout_s=timeout_s,
            traceparent=traceparent,
        ) as stream:
            return await stream.completion()

    async def list_models(self, *, timeout_s: float | None = None) -> list[ModelCard]:
        """Returns the models served.

        Args:
            timeout_s: Seconds until the call fails with DeadlineError; None = no limit.
        Raises:
            ArboristError: The server could not answer.
        """
        try:
            reply = await self._stub.ListModels(
                pb.ListModelsRequest(), timeout=timeout_s, metadata=self._key
            )
            return read_models(reply)
        except grpc.RpcError as error:
            raise client_error(error, self._address) from None
