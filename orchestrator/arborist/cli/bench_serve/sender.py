"""What carries a request to the server: one interface, and gRPC behind it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from arborist.cli.bench_serve.load_request import LoadRequest
from arborist.client.async_client import AsyncClient
from arborist.client.completion import ModelCard


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message with tokens.

    Attributes:
        num_tokens: Tokens it brought.
        accepted_count: Drafted tokens the round accepted; None = it was no round (the prefill's
            token).
        num_draft_tokens: Drafted nodes the round verified.
    """

    num_tokens: int
    accepted_count: int | None
    num_draft_tokens: int


@dataclass(frozen=True, slots=True)
class RoundTotals:
    """What the server itself counted; replaces what its messages added up to.

    Attributes:
        num_rounds: Rounds.
        accepted_tokens: Drafted tokens accepted.
        draft_tokens: Drafted nodes verified.
    """

    num_rounds: int
    accepted_tokens: int
    draft_tokens: int


class Sender(Protocol):
    """Sends requests to one server; one event loop owns it."""

    def stream(self, request: LoadRequest) -> AsyncGenerator[Delivery | RoundTotals, None]:
        """Sends a request and yields what comes; closing it early cancels the request.

        RoundTotals, if any, are the last.

        Raises:
            ArboristError: The server refused or could not go on.
        """
        ...


class GrpcSender:
    """Sends through the public gRPC API."""

    def __init__(self, client: AsyncClient, model: str = "") -> None:
        """Wraps a client.

        Args:
            client: Connected to the server; stays the caller's.
            model: Served name; empty = the only one.
        """
        self._client = client
        self._model = model

    async def stream(self, request: LoadRequest) -> AsyncGenerator[Delivery | RoundTotals, None]:
        """Sends a request and yields a Delivery per round.

        Raises:
            ArboristError: The server refused or could not go on.
        """
        call = self._client.generate(
            request.prompt,
            model=self._model,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            seed=request.seed,
            speculation=request.speculation,
            ignore_eos=request.ignore_eos,
            timeout_s=request.timeout_s,
        )
        async with call:
            async for one in call:
                accepted = one.accepted_count if one.round_index >= 0 else None
                yield Delivery(len(one.token_ids), accepted, one.num_draft_tokens)

    async def list_models(self) -> list[ModelCard]:
        """Returns the models served.

        Raises:
            ArboristError: The server could not answer.
        """
        return await self._client.list_models()
