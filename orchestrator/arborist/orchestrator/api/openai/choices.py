"""The generations behind one answer: started together, read together, ended together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Self

from arborist.orchestrator.api.completion import CompletionEvent
from arborist.orchestrator.api.completions import Completions
from arborist.orchestrator.api.openai.choice_output import ChoiceOutput
from arborist.orchestrator.api.validator import ValidRequest
from arborist.orchestrator.generation import Generation


class Choices:
    """All choices of a request; use as an async context manager, then iterate once.

    Attributes:
        outputs: What has come of each, by index.
    """

    def __init__(self, completions: Completions, requests: Sequence[ValidRequest]) -> None:
        """Admits all of them, or none.

        Args:
            completions: Where they run.
            requests: One per choice.
        Raises:
            ArboristError: One of them was refused; nothing runs.
        """
        self.outputs = [ChoiceOutput(i, one.generation) for i, one in enumerate(requests)]
        self._generations: list[Generation] = []
        self._streams: list[AsyncGenerator[CompletionEvent, None]] = []
        self._refusal: Exception | None = None
        for one in requests:
            try:
                generation, stream = completions.start(one)
            except Exception as error:  # noqa: BLE001 - raised again once the others are closed
                self._refusal = error
                return
            self._generations.append(generation)
            self._streams.append(stream)

    async def __aenter__(self) -> Self:
        """Returns itself.

        Raises:
            ArboristError: One of them was refused; nothing runs.
        """
        if self._refusal is not None:
            await self._close()
            raise self._refusal
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends what still runs."""
        await self._close()

    async def events(self) -> AsyncGenerator[tuple[ChoiceOutput, CompletionEvent], None]:
        """Yields every event with its choice, which does not have it yet.

        Raises:
            ArboristError: One of them cannot go on.
        """
        merged = _alone(self._streams[0]) if len(self._streams) == 1 else _merged(self._streams)
        async with aclosing(merged):
            async for index, event in merged:
                yield self.outputs[index], event

    async def _close(self) -> None:
        # All of them first: whoever is cancelled while one ends must leave no other running.
        for one in self._generations:
            one.leave()
        for one in self._generations:
            await one.aclose()


async def _alone(
    stream: AsyncGenerator[CompletionEvent, None],
) -> AsyncGenerator[tuple[int, CompletionEvent], None]:
    async with aclosing(stream):
        async for event in stream:
            yield 0, event


async def _merged(
    streams: Sequence[AsyncGenerator[CompletionEvent, None]],
) -> AsyncGenerator[tuple[int, CompletionEvent], None]:
    # One place each: a reader that is slow stops all of them, wherever they are.
    queue: asyncio.Queue[tuple[int, CompletionEvent | Exception | None]] = asyncio.Queue(
        len(streams)
    )

    async def pump(index: int, stream: AsyncGenerator[CompletionEvent, None]) -> None:
        last: Exception | None = None
        try:
            async with aclosing(stream):
                async for event in stream:
                    await queue.put((index, event))
        except Exception as error:  # noqa: BLE001 - raised again where the answer is written
            last = error
        await queue.put((index, last))

    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(pump(i, one), name=f"choice-{i}") for i, one in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            index, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
