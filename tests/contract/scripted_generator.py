"""A controller without models: yields the rounds it was given, and can be held between them."""

import asyncio
from dataclasses import dataclass, field

from arborist.core.errors import ArboristError
from arborist.core.logprobs import TokenLogprobs
from arborist.orchestrator.generation import (
    DeliveredRound,
    GenerationEvent,
    GenerationRequest,
    ServedModel,
    SpeculationSummary,
    Started,
    Summary,
    Timing,
)
from arborist.orchestrator.round import RoundTimes
from arborist.orchestrator.session import FinishReason

MODEL = ServedModel("tiny", 100, 266, (0,), created_s=7, speculation=True)


class ScriptedGeneration:
    """One generation; notes how it was ended."""

    def __init__(self, script: "ScriptedGenerator", request: GenerationRequest) -> None:
        self._script = script
        self._rounds = [list(tokens) for tokens in script.rounds]
        self._request = request
        self._next = -1
        self.finished: tuple[FinishReason, int] | None = None
        self.closed = False
        self._tokens = 0
        self._over = False

    @property
    def num_given(self) -> int:
        """Returns how many events were asked for."""
        return self._next + 1

    def __aiter__(self) -> "ScriptedGeneration":
        """Returns itself."""
        return self

    async def __anext__(self) -> GenerationEvent:
        """Returns Started, the rounds, Summary; an error where the script has one."""
        index, self._next = self._next, self._next + 1
        if index < 0:
            return Started("r-1", MODEL.id, len(self._request.prompt_token_ids), 42, "f" * 32)
        if self._over:
            raise StopAsyncIteration
        if self.finished is None and index < len(self._rounds):
            await self._script.pass_gate(index)
            self._tokens += len(self._rounds[index])
            times = RoundTimes(1.0, 2.0, 3.0, 4.0, 10.0)
            ids, told = tuple(self._rounds[index]), self._script.logprobs
            logprobs = tuple(told[index]) if told else self._logprobs(ids)
            return DeliveredRound(index - 1, ids, 6, 2, 3, times, logprobs)
        if self.finished is None and self._script.failure is not None:
            raise self._script.failure
        self._over = True
        reason, tokens = self.finished or (FinishReason.LENGTH, self._tokens)
        return Summary(
            reason,
            len(self._request.prompt_token_ids),
            tokens,
            SpeculationSummary(2, 12, 4, 3.0, (0, 1, 1), 0),
            Timing(0.0, 5.0, 20.0, 26.0, 150.0),
            self._script.cached_prompt_tokens,
        )

    def _logprobs(self, tokens: tuple[int, ...]) -> tuple[TokenLogprobs, ...]:
        """Half the token's id, and -1, -2, ... for tokens 0, 1, ..."""
        if self._request.num_logprobs is None:
            return ()
        top = tuple((token, -1.0 - token) for token in range(self._request.num_logprobs))
        return tuple(TokenLogprobs(token, -token / 2, top) for token in tokens)

    async def finish(self, reason: FinishReason, num_tokens: int) -> None:
        """Notes the early end."""
        self.finished = (reason, num_tokens)

    def leave(self) -> None:
        """Notes that everything was freed."""
        self.closed = True
        self._script.closed.set()

    async def aclose(self) -> None:
        """Notes it, and takes the moment that a real one takes."""
        self.leave()
        await asyncio.sleep(0)


@dataclass
class ScriptedGenerator:
    """Implements `generation.Generator`.

    Attributes:
        rounds: Tokens of each round.
        failure: Raised after the rounds, in place of a summary.
        refusal: Raised by `generate`.
        hold_at: Index of the round that never comes.
        cached_prompt_tokens: What every summary says about its prompt.
        logprobs: Of the tokens of each round; empty = made up when asked for.
    """

    rounds: list[list[int]] = field(default_factory=lambda: [[5, 6], [7]])
    failure: Exception | None = None
    refusal: ArboristError | None = None
    hold_at: int = -1
    logprobs: list[list[TokenLogprobs]] = field(default_factory=list)
    cached_prompt_tokens: int = 0
    served: list[ServedModel] = field(default_factory=lambda: [MODEL])
    ready: bool = True
    requests: list[GenerationRequest] = field(default_factory=list)
    generations: list[ScriptedGeneration] = field(default_factory=list)
    held: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def pass_gate(self, index: int) -> None:
        """Holds the generation at its planned round for ever."""
        if index == self.hold_at:
            self.held.set()
            await asyncio.Event().wait()

    def models(self) -> list[ServedModel]:
        """Returns the models."""
        return self.served

    def generate(self, request: GenerationRequest) -> ScriptedGeneration:
        """Starts a generation."""
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)
        self.generations.append(ScriptedGeneration(self, request))
        return self.generations[-1]
