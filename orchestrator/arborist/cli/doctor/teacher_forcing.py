"""How often a head's first choice is the target's token when it is fed true pairs only.

Where tau says that little is accepted, this says whether the head would do better on other pairs:
the same output, fed with tokens shifted by one, or with features of other layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, cat

from arborist.core.engine import (
    DraftEngine,
    DraftOpen,
    Extend,
    Prefill,
    PrefillResult,
    SessionKey,
    TargetEngine,
    TargetOpen,
)
from arborist.core.errors import ArboristError
from arborist.core.features import FeatureSpec
from arborist.core.sampling import SamplingParams
from arborist.core.tree import Level

_CONTROLLER = "arborist-doctor"
_PREFILL_TOKENS = 256
# What a session of the draft takes besides its pairs, at most.
_SCRATCH_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Passage:
    """A prompt and the target's greedy output.

    Attributes:
        token_ids: Both, one after the other.
        num_prompt_tokens: How many of them are the prompt.
    """

    token_ids: tuple[int, ...]
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class ForcedRun:
    """What a head is fed and what it should say.

    Attributes:
        tokens: Token of each pair.
        features: Feature of each pair, (pairs, width).
        first: First pair that is asked for a token.
        expected: The target's token after each pair from `first` on.
    """

    tokens: list[int]
    features: Tensor
    first: int
    expected: list[int]


def forced_run(passage: Passage, features: Tensor, shift: int = 0) -> ForcedRun:
    """Pairs a passage's features with its tokens.

    Args:
        passage: At least three tokens of prompt and two of output.
        features: Of all positions but the last, (len − 1, width).
        shift: 0 pairs feature f_t with x_{t+1}, as EAGLE does; 1 with x_{t+2}, −1 with x_t. The
            token asked for is always the one after the pair's, so every shift is asked for the
            same tokens.
    """
    ids = passage.token_ids
    count = len(ids) - 2 - shift
    first = passage.num_prompt_tokens - 1 - shift
    tokens = list(ids[1 + shift : 1 + shift + count])
    return ForcedRun(tokens, features[:count], first, list(ids[2 + shift + first :]))


def read_features(target: TargetEngine, passage: Passage, spec: FeatureSpec | None) -> Tensor:
    """Runs a passage through the target.

    Args:
        target: Engine of the target.
        passage: What to run.
        spec: Which features; None = the state after the final norm.
    Returns:
        (len − 1, width): every position but the last.
    Raises:
        ArboristError: It does not fit, or the target failed.
    """
    session = (_CONTROLLER, "features")
    ids = list(passage.token_ids[:-1])
    request = TargetOpen(SamplingParams(temperature=0.0), spec or FeatureSpec(), len(ids), 0)
    target.open(session, request)
    parts: list[Tensor] = []
    try:
        for begin in range(0, len(ids), _PREFILL_TOKENS):
            chunk = ids[begin : begin + _PREFILL_TOKENS]
            (outcome,) = target.run([Prefill(session, begin, chunk, last=False)])
            if isinstance(outcome, ArboristError):
                raise outcome
            if isinstance(outcome, PrefillResult) and outcome.features is not None:
                parts.append(outcome.features.clone())
    finally:
        target.release(session)
    return cat(parts)


def agreements(draft: DraftEngine, runs: Sequence[ForcedRun]) -> list[float]:
    """Feeds a head and counts how often its first choice is the target's token.

    Args:
        draft: Engine of the head, as it is served.
        runs: At least one token expected in each.
    Returns:
        For each run the share of expected tokens that were the head's first choice.
    Raises:
        ArboristError: The draft failed.
    """
    shares: list[float] = []
    for group in _groups(draft, runs):
        sessions = [(_CONTROLLER, str(number)) for number in range(len(group))]
        try:
            for session, run in zip(sessions, group, strict=True):
                draft.open(session, DraftOpen(max_length=len(run.tokens)))
            shares += _run_group(draft, sessions, group)
        finally:
            for session in sessions:
                draft.release(session)
    return shares


def _groups(draft: DraftEngine, runs: Sequence[ForcedRun]) -> Iterator[list[ForcedRun]]:
    """Yields runs that fit together into the draft's KV."""
    group: list[ForcedRun] = []
    room = draft.kv_capacity_tokens
    for run in runs:
        needed = len(run.tokens) + _SCRATCH_TOKENS
        if group and needed > room:
            yield group
            room, group = draft.kv_capacity_tokens, []
        room -= needed
        group.append(run)
    yield group


def _run_group(
    draft: DraftEngine, sessions: list[SessionKey], group: list[ForcedRun]
) -> list[float]:
    known = [
        Extend(session, 0, run.tokens[: run.first], run.features[: run.first], 0)
        for session, run in zip(sessions, group, strict=True)
        if run.first
    ]
    _run(draft, known)
    hits = [0] * len(group)
    for step in range(max(len(run.expected) for run in group)):
        asked = [number for number, run in enumerate(group) if step < len(run.expected)]
        batch = [_one_pair(sessions[number], group[number], step) for number in asked]
        for number, level in zip(asked, _run(draft, batch), strict=True):
            first = int(level.tokens[0, 0]) if isinstance(level, Level) else -1
            hits[number] += first == group[number].expected[step]
    return [count / len(run.expected) for count, run in zip(hits, group, strict=True)]


def _one_pair(session: SessionKey, run: ForcedRun, step: int) -> Extend:
    place = run.first + step
    return Extend(session, place, [run.tokens[place]], run.features[place : place + 1], 1)


def _run(draft: DraftEngine, batch: list[Extend]) -> list[object]:
    outcomes: list[object] = []
    for outcome in draft.run(batch) if batch else ():
        if isinstance(outcome, ArboristError):
            raise outcome
        outcomes.append(outcome)
    return outcomes
