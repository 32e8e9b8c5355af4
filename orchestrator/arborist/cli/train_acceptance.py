"""Tau of a head in training: held-out prompts through the decode loop that serves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from arborist.cli.local import LocalModel
from arborist.common.config import load_config
from arborist.core.errors import InvalidArgumentError
from arborist.orchestrator.api.incoming import IncomingRequest, TokenPrompt
from arborist.orchestrator.round import Round
from arborist.training.acceptance import Acceptance
from arborist.training.pair_engines import draft_engine, target_engine

if TYPE_CHECKING:
    from arborist.training.target_states import TargetStates
    from arborist.training.trained_head import TrainedHead


class _TimeIsUp(Exception):  # noqa: N818 - nothing went wrong
    """Ends an output between two rounds."""


@dataclass(slots=True)
class _Count:
    """Rounds so far, and when to stop."""

    deadline_s: float
    num_rounds: int = 0
    num_accepted: int = 0

    def take(self, round_: Round) -> None:
        """Counts a round.

        Raises:
            _TimeIsUp: The time is over.
        """
        if round_.round_index >= 0:  # The prefill drafts nothing.
            self.num_rounds += 1
            self.num_accepted += round_.accepted_count
        if time.monotonic() > self.deadline_s:
            raise _TimeIsUp


class HeadMeter:
    """Decodes held-out prompts greedily, with the default tree; implements MeasureAcceptance."""

    def __init__(
        self,
        target: TargetStates,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        limit_s: float,
    ) -> None:
        """Makes the target's engine.

        Args:
            target: Loaded.
            prompts: Token ids; those that leave no room for an output are passed over.
            max_tokens: Most tokens per output, at least 2.
            limit_s: Seconds a measurement takes at most, but for the round under way.
        Raises:
            InvalidArgumentError: A limit is out of range.
        """
        if max_tokens < 2:
            raise InvalidArgumentError("tau-tokens", max_tokens, "at least 2")
        if limit_s <= 0:
            raise InvalidArgumentError("tau-seconds", limit_s, "above 0")
        room = target.model.info.context_length - max_tokens
        self._prompts = [tuple(one) for one in prompts if 0 < len(one) <= room]
        self._max_tokens, self._limit_s = max_tokens, limit_s
        self._states = target
        self._config = load_config()
        self._max_length = max(map(len, self._prompts), default=1) + max_tokens
        slack = self._config.speculation.max_num_draft_tokens + 1
        self._target = target_engine(target, self._max_length + slack)

    def __call__(self, model: TrainedHead) -> Acceptance | None:
        """Measures a head as it is.

        Args:
            model: In training; a copy of it drafts.
        Returns:
            None when no round was finished in time.
        """
        began_s = time.monotonic()
        draft = draft_engine(model, self._states, self._max_length)
        local = LocalModel(self._target, draft, None, self._config)
        count = _Count(began_s + self._limit_s)
        num_prompts = 0
        for prompt in self._prompts:
            request = IncomingRequest(TokenPrompt(prompt), max_tokens=self._max_tokens)
            num_prompts += 1
            try:
                local.complete(request, on_round=count.take)
            except _TimeIsUp:
                break
        if not count.num_rounds:
            return None
        return Acceptance(
            tau=1 + count.num_accepted / count.num_rounds,
            num_rounds=count.num_rounds,
            num_prompts=num_prompts,
            elapsed_s=time.monotonic() - began_s,
        )
